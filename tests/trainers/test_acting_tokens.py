"""Runs of policies that act by tokens in worlds of unequal episodes: ranks, ZeRO, kills, vLLM, reserved tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.cli.merging import merge_adapter
from align_anything.models.action_space import read_action_space, write_action_space
from align_anything.models.action_tokens import add_action_tokens
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.vllm import VLLMRollouts
from align_anything.trainers.pairs import PAIRS
from tests.harness.warm import import_vllm
from tests.policies.acting import worlds
from tests.policies.acting.worlds import NAMED, NUMBERS, small
from tests.trainers.runs import die, lines, run, sft, weights, write_rows
from tests.trainers.test_resume import assert_same

Tiny = Callable[..., Path]
pytestmark = pytest.mark.extended
PAIR = PAIRS['text_video_to_action']
WORLD = f'{worlds.__file__}:Line'
TAIL = replace(NAMED, tokens='tail', first_ids=(300,))
ONLINE = sorted(
    name
    for name, kind in known_algorithms().items()
    if kind.generates and kind.trains and name not in ('nft', 'ppo_vllm')
)
TABLE = {'environment': 'reach'}
PI0 = {**TABLE, 'rollout_steps': 3, 'sde_window': 1}
CRITIC = {'critic_lr': 1e-3, 'critic_warmup_steps': 0}


@pytest.fixture(scope='module')
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and a model that acts by the tail of its vocabulary, and one by reserved tokens."""
    folder = tmp_path_factory.mktemp('tokens')
    write_rows(folder / 'prompts.jsonl', [{'prompt': 'go to the left', 'place': number} for number in range(12)])
    (folder / 'tail').mkdir()
    for file in tiny('qwen2_5_vl').iterdir():
        (folder / 'tail' / file.name).symlink_to(file)
    write_action_space(folder / 'tail', TAIL)
    small(folder / 'spoc')
    small(folder / 'gaussian', replace(NUMBERS, executed=2), head='gaussian')
    (folder / 'pi0').symlink_to(tiny('pi0'))
    add_action_tokens(tiny('qwen2_5_vl'), NAMED, folder / 'reserved')
    return folder


def argv(folder: Path, output: Path, *more: str, model: str = 'tail', **changes: Any) -> list[str]:
    """2 prompts x 3 episodes a rank and rollout, which differ in length."""
    settings = {
        'environment': WORLD,
        'max_turns': 5,
        'max_new_tokens': 2,
        'model_max_length': 512,
        'emit_temperature': '{action: 3}',
        'num_generations': 3,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 3,
        'update_iters': 2,
        'max_steps': 4,
        'log_interval': 1,
        **changes,
    }
    return sft(output, folder / model, folder / 'prompts.jsonl', *more, template='Prompts', **settings)


def succeed(settings: list[str], name: str, ranks: int = 1) -> None:
    ended = run(settings, ranks, PAIR, algorithm=find_run(PAIR.name, name)[1])
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)


def check_rollouts(output: Path, most: float = 1e-4) -> None:
    records = [record for record in lines(output / 'metrics.jsonl') if 'train/turns' in record]
    assert records and all(record['train/rollout_drift'] < most for record in records), 'what was sampled is trained'
    assert any(1 < record['train/turns'] < 5 for record in records), 'episodes of unequal lengths'


@pytest.mark.parametrize(('name', 'stage'), [('grpo', 3), ('ppo', 3), ('saferlhf', 2)])
def test_ranks_with_unequal_episodes_learn_alike_under_zero(
    name: str, stage: int, folder: Path, tmp_path: Path
) -> None:
    changes = {} if name == 'grpo' else {**CRITIC}
    for number in (0, stage):
        succeed(argv(folder, tmp_path / str(number), ds_cfgs=f'ds_z{number}_config.json', **changes), name, 2)
        check_rollouts(tmp_path / str(number))
    one, other = (weights(tmp_path / str(number) / 'slice_end') for number in (0, stage))
    assert all(torch.allclose(one[key], other[key], atol=2e-3) for key in one)


@pytest.mark.parametrize('kind', ['tokens', 'spoc', 'gaussian', 'pi0'])
@pytest.mark.parametrize('name', ONLINE)
def test_every_online_algorithm_starts_with_every_kind(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {'emit_temperature': None, 'max_new_tokens': None}
    changes |= {'tokens': {'emit_temperature': '{action: 3}', 'max_new_tokens': 2}, 'pi0': PI0, 'gaussian': TABLE}.get(
        kind, {}
    )
    changes |= {'remote_rm_url': 'null'} if name == 'ppo_remote_rm' else {}
    if name == 'online_dpo':
        # It compares pairs, and trains no denoising step.
        changes |= {'num_generations': 2, 'per_device_train_batch_size': 2, 'sde_window': None}
    model = {'tokens': 'tail'}.get(kind, kind)
    settings = argv(folder, tmp_path / 'out', '--dry_run', model=model, **changes)
    (ended,) = run(settings, 1, PAIR, algorithm=find_run(PAIR.name, name)[1])
    assert ended.code == 0 and 'This was a dry run' in ended.output, ended.output


def dies_acting(kind: Any, step: int) -> Callable[[int], None]:
    """The last rank is killed in the second turn of the rollout after so many optimizer steps."""

    def before(rank: int) -> None:
        inner, calls = kind.generate, []

        def watched(self: Any, *given: Any, **named: Any) -> Any:
            calls.append(self.version)
            if rank == 1 and calls.count(step) == 2:
                die()
            return inner(self, *given, **named)

        kind.generate = watched

    return before


@pytest.mark.parametrize(('name', 'stage'), [('grpo', 3), ('saferlhf', 2)])
def test_killed_in_an_episode(name: str, stage: int, folder: Path, tmp_path: Path) -> None:
    changes = {'max_steps': 8, 'save_interval': 4, 'save_total_limit': 2, 'ds_cfgs': f'ds_z{stage}_config.json'}
    changes |= {} if name == 'grpo' else CRITIC
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    succeed(argv(folder, whole, **changes), name, 2)
    run(argv(folder, broken, **changes), 2, PAIR, dies_acting(HFRollouts, 4), find_run(PAIR.name, name)[1])
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    succeed(argv(folder, broken, '--resume', 'auto', **changes), name, 2)
    assert_same(whole, broken)


@pytest.mark.parametrize(('model', 'ranks'), [('tail', 2), ('reserved', 1)])
def test_vllm_does_what_is_trained(model: str, ranks: int, folder: Path, tmp_path: Path) -> None:
    import_vllm()
    how = {'use_vllm': True, 'vllm_gpu_memory_utilization': 0.01, 'log_completions': 1, 'max_steps': 12}
    succeed(argv(folder, tmp_path, model=model, **how), 'grpo', ranks)
    check_rollouts(tmp_path)
    done = {
        turn['text']
        for record in lines(tmp_path / 'completions.jsonl')
        for turn in record['turns']
        if turn['role'] == 'assistant'
    }
    assert len(done) > 1 and done <= {*NAMED.names}


def test_killed_in_an_episode_of_vllm(folder: Path, tmp_path: Path) -> None:
    import_vllm()
    how = {'use_vllm': True, 'vllm_gpu_memory_utilization': 0.01}
    changes = {**how, 'max_steps': 8, 'save_interval': 4, 'save_total_limit': 2, 'ds_cfgs': 'ds_z2_config.json'}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    succeed(argv(folder, whole, **changes), 'grpo', 2)
    run(argv(folder, broken, **changes), 2, PAIR, dies_acting(VLLMRollouts, 4), find_run(PAIR.name, 'grpo')[1])
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    succeed(argv(folder, broken, '--resume', 'auto', **changes), 'grpo', 2)
    assert_same(whole, broken)


def test_reserved_tokens_learn_and_are_saved(folder: Path, tmp_path: Path) -> None:
    before = weights(folder / 'reserved')
    space = read_action_space(folder / 'reserved')
    (first,) = space.first_ids
    # Long enough for episodes whose rewards differ.
    longer = {'model': 'reserved', 'epochs': 10, 'max_steps': 16}
    succeed(argv(folder, tmp_path / 'full', **longer), 'grpo')
    after = weights(tmp_path / 'full' / 'slice_end')
    (rows,) = [key for key in before if key.endswith('embed_tokens.weight')]
    # They began alike; those that no rollout sampled still may be.
    assert [len({tuple(row) for row in own[rows][first : first + 3].tolist()}) > 1 for own in (before, after)] == [
        False,
        True,
    ]
    assert read_action_space(tmp_path / 'full' / 'slice_end') == space
    # An adapter would leave rows that are all alike as they are, unless they are trained and saved beside it.
    lora = {'use_lora': True, 'lora_r': 2, **longer}
    (ended,) = run(argv(folder, tmp_path / 'lora', **lora), pair=PAIR, algorithm=find_run(PAIR.name, 'grpo')[1])
    assert ended.code == 2 and '--modules_to_save embed_tokens lm_head' in ended.output
    saved = '--modules_to_save', '[embed_tokens, lm_head]'
    succeed(argv(folder, tmp_path / 'lora', *saved, **lora), 'grpo')
    adapter = weights(tmp_path / 'lora' / 'slice_end')
    heads = [own for key, own in adapter.items() if 'lm_head' in key and own.shape == before[rows].shape]
    assert heads and all(len({tuple(row) for row in own[first : first + 3].tolist()}) > 1 for own in heads)
    merge_adapter(tmp_path / 'lora' / 'slice_end', tmp_path / 'merged')
    assert read_action_space(tmp_path / 'merged') == space
