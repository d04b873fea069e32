"""Whole runs on recorded episodes: CHORES by align-anything's own settings file, windows, kills, unequal ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.core.actions import ActionSpace
from align_anything.datasets.formatters.chores_tasks import STRETCH_ACTIONS
from align_anything.models.acting.checkpoint import load_acting
from align_anything.testing import episodes as made
from align_anything.testing.acting import build_acting
from align_anything.testing.episodes import CAMERAS, DIMENSIONS, Episode, episodes
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.pairs import PAIRS
from tests.configs.incumbent_actions import CAMERAS as SENSORS
from tests.configs.incumbent_actions import incumbent_file
from tests.policies.acting.worlds import SMALL
from tests.trainers.runs import die, lines, run, sft, weights
from tests.trainers.test_resume import assert_same

PAIR = PAIRS['text_video_to_action']
WORDS = (*'pick up take grab grasp clutch hold an apple push the square to right'.split(),)


def model(folder: Path, space: ActionSpace, **more: Any) -> Path:
    return build_acting(folder, space, **{**SMALL, 'words': WORDS, 'image_size': (32, 32), 'patch_size': 8, **more})


def succeed(argv: list[str], ranks: int = 1) -> str:
    ended = run(argv, ranks, PAIR, algorithm=SFT)
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    return ended[0].output


def losses(output: Path) -> list[dict[str, float]]:
    return [record for record in lines(output / 'metrics.jsonl') if 'train/loss' in record]


def test_chores_by_the_settings_file_of_align_anything(tmp_path: Path) -> None:
    """Their file as it is, but for what a small machine needs. One recording has an action too many."""
    recorded = [*episodes(*range(3, 15)), Episode(12, 5, shift=1)]
    made.write_chores(tmp_path / 'data' / 'PickupType', recorded)
    made.write_chores(tmp_path / 'data' / 'PickupType', episodes(6, 4, 9), split='val')
    (tmp_path / 'theirs.yaml').write_text(incumbent_file(data_dir=str(tmp_path / 'data'), val_datasets=True))
    space = ActionSpace(names=tuple(STRETCH_ACTIONS.values()), cameras=tuple(SENSORS))
    argv = ['--config', str(tmp_path / 'theirs.yaml'), '--model_name_or_path', str(model(tmp_path / 'model', space))]
    argv += f'--output_dir {tmp_path / "run"} --ds_cfgs ds_z0_config.json --bf16 False --log_type none'.split()
    argv += '--num_workers 0 --epochs 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1'.split()
    argv += '--sliding_window 5 --max_skipped_ratio 0.2 --val_interval 4 --learning_rate 1e-2'.split()
    succeed([*argv, '--model_version', 'null'], 2)
    found = losses(tmp_path / 'run')
    # Thirteen rows over two ranks with two each.
    assert len(found) == 8 and found[-1]['train/loss'] < found[0]['train/loss']
    skipped = lines(tmp_path / 'run' / 'skipped_samples.jsonl')
    assert any('there should be one frame more' in record['reason'] for record in skipped)
    assert any('eval/loss' in record for record in lines(tmp_path / 'run' / 'metrics.jsonl'))
    before = load_acting(tmp_path / 'model', torch.float32).state_dict()
    after = weights(tmp_path / 'run' / 'slice_end')
    assert any(not torch.equal(after[name], before[name]) for name in before)


def arm(folder: Path) -> Path:
    space = ActionSpace(dimensions=DIMENSIONS, chunk=3, executed=2, normalization='identity', cameras=CAMERAS)
    return model(folder, space, head='l1')


def recorded(tmp_path: Path, output: Path, *more: Any, **settings: Any) -> list[str]:
    data = tmp_path / 'pusht'
    if not data.exists():
        made.write_lerobot(data, episodes(9, 4, 7, 12, 5))
        arm(tmp_path / 'model')
    given = {'model_max_length': None, 'gradient_checkpointing': None, 'log_interval': 1, **settings}
    return sft(output, tmp_path / 'model', data, *more, template='LeRobot', **given)


def dies_before(step: int) -> Callable[[int], None]:
    def before(rank: int) -> None:
        inner = OfflineLoop._step

        def watched(self: OfflineLoop, loaded: Any) -> Any:
            if self.progress.step + 1 == step:
                die()
            return inner(self, loaded)

        OfflineLoop._step = watched

    return before


@pytest.mark.parametrize(
    'windows',
    [
        {'sliding_window': 3, 'epochs': 4, 'init_prob_sample_last_steps': 0.5},
        pytest.param({'windows': 'all'}, marks=pytest.mark.extended),
    ],
)
def test_killed_and_resumed(tmp_path: Path, windows: dict[str, Any]) -> None:
    changes = {**windows, 'save_interval': 2, 'save_total_limit': 2, 'max_steps': 6}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    succeed(recorded(tmp_path, whole, **changes), 2)
    run(recorded(tmp_path, broken, **changes), 2, PAIR, dies_before(5), SFT)
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    succeed(recorded(tmp_path, broken, '--resume', 'auto', **changes), 2)
    assert_same(whole, broken)


@pytest.mark.extended
def test_all_windows_are_rows(tmp_path: Path) -> None:
    """Each step begins a window of a chunk: 37 rows, of which a rank has every other one."""
    succeed(recorded(tmp_path, tmp_path / 'run', windows='all', per_device_train_batch_size=4), 2)
    found = losses(tmp_path / 'run')
    assert len(found) == 5
    assert sum(record['train/samples'] for record in found) == 37
