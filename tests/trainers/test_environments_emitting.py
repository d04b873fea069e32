"""Models whose turns are pictures, in a game of drawing: the environment is given each picture, and judges it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.emitting import write_digit_rows
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import lines, run, sft, write_rows
from tests.trainers.test_emitting_families import CODES, SIZES, decoding
from tests.trainers.test_online import metrics_of

Emitting = Callable[..., Path]
GAME = """
import numpy

from align_anything.environments import Environment, Observation, Step


class Darker(Environment):
    "Each picture is to be darker than the one before."

    def reset(self, row, seed):
        self.tries, self.last = 0, 1.0
        return Observation('Begin.')

    def step(self, said):
        (picture,) = [part['image'] for part in said.parts if part['type'] == 'image']
        assert picture.mode == 'RGB' and picture.size == (8, 8) and not said.text.strip()
        light = float(numpy.asarray(picture).mean()) / 255
        gained, self.last, self.tries = self.last - light, light, self.tries + 1
        done = self.tries == 3 or gained < 0
        return Step(Observation('Darker.'), reward=gained, done=done, info={'success': gained > 0})
"""
ALGORITHMS = ['grpo', 'ppo', 'online_dpo', 'rloo']


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('game')
    (folder / 'game.py').write_text(GAME)
    return write_digit_rows(folder, 8)


def drawn(rows: Path, output: Path, model: Path, **changes: Any) -> list[str]:
    settings = {
        'template': 'Messages',
        'environment': f'{rows.parent}/game.py:Darker',
        'max_turns': 3,
        'max_new_tokens': 20,
        'num_generations': 4,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 8,
        'max_steps': 2,
        'log_completions': 1,
        'model_max_length': 512,
        **changes,
    }
    return sft(output, model, rows, **settings)


@pytest.mark.parametrize(('name',), in_tiers([(name,) for name in ALGORITHMS], [('grpo',)]))
def test_each_turn_is_a_picture_that_the_environment_sees(
    name: str, emitting: Emitting, rows: Path, tmp_path: Path
) -> None:
    pair, algorithm = find_run('text_to_image', name)
    changes = {'ppo': {'critic_lr': 1e-3}}.get(name, {})
    (ended,) = run(drawn(rows, tmp_path, emitting('drawing'), **changes), pair=pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    assert not (tmp_path / 'failed_episodes.jsonl').exists()
    for record in metrics_of(tmp_path):
        assert record['train/rollout_drift'] < 1e-5 and 1 < record['train/turns'] <= 3
        assert 0 <= record['train/success'] <= 1
    written = lines(tmp_path / 'completions.jsonl')
    longest = max(written, key=lambda record: len(record['turns']))
    pictures = [name for name in longest['media'] if name.endswith('.png')]
    assert len(pictures) == (len(longest['turns']) + 1) // 2 > 1
    assert {Image.open(tmp_path / name).size for name in pictures} == {(8, 8)}


CODED = """
from align_anything.environments import Environment, Observation, Step


class Coded(Environment):
    "Two pictures, of which the second is to have higher codes than the first."

    def reset(self, row, seed):
        self.codes = []
        return Observation()

    def step(self, said):
        (part,) = [part for part in said.parts if part['type'] == 'image']
        self.codes.append(part.get('codes', part['image']).codes.float().mean().item())
        if self.look:
            assert part['image'].mode == 'RGB'
        done = len(self.codes) == 2
        return Step(Observation('Another.'), reward=self.codes[-1] - self.codes[0], done=done)

    look = False


class Decoded(Coded):
    look = True
"""


@pytest.mark.extended
@pytest.mark.parametrize('family', ['emu3', 'janus', 'chameleon'])
def test_families_with_a_codec_of_their_own_play_too(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'prompt': f'Draw a house, number {n}.'} for n in range(6)])
    (tmp_path / 'game.py').write_text(CODED)
    source = decoding(tiny(family), tmp_path) if family == 'chameleon' else tiny(family)
    decodes = all(rules.decodes for rules in load_spec(str(source)).codes.rules.values())
    changes = {
        'template': 'Prompts',
        'environment': f'{tmp_path}/game.py:{"Decoded" if decodes else "Coded"}',
        'max_turns': 2,
        'max_new_tokens': 60,
        'per_device_prompt_batch_size': 1,
        'per_device_train_batch_size': 4,
        **SIZES.get(family, {}),
    }
    pair, algorithm = find_run('text_to_image', 'grpo')
    (ended,) = run(drawn(rows, tmp_path / 'out', source, **changes), pair=pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    assert not (tmp_path / 'out' / 'failed_episodes.jsonl').exists()
    for record in metrics_of(tmp_path / 'out'):
        # Codes alone are choices.
        assert record['train/turns'] == 2 and record['train/response_length'] == 2 * CODES[family]
        assert record['train/rollout_drift'] < 1e-5 and record['train/ratio'] == pytest.approx(1, abs=1e-5)
