"""Whole runs of policies that act by tokens: demonstrations, preferences, environments, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align_anything.environments.demonstrations import write_demonstrations
from align_anything.models.action_space import read_action_space, write_action_space
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import lines, run, sft, succeed, write_rows
from tests.trainers.test_online import metrics_of, named
from tests.trainers.test_resume import assert_same, dies_while_saving

Tiny = Callable[..., Path]
ACTING = PAIRS['text_video_to_action']


@pytest.fixture(scope='module')
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the room with hot floor, and prompts for others."""
    folder = tmp_path_factory.mktemp('room')
    write_demonstrations('hot_floor', {}, folder, 6, prompts=6)
    return folder


@pytest.fixture(scope='module')
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of two steps of an arm, and pairs of them that begin alike."""
    folder = tmp_path_factory.mktemp('arm')
    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(folder / f'{number}.png')

    def acted() -> list[float]:
        return [float(random.normal(3.0, 2.0)), float(random.random()), float(random.integers(2))]

    def turns(begin: int, *steps: list[float]) -> list[dict[str, Any]]:
        shown = [[{'type': 'text', 'text': 'reach'}, {'type': 'image', 'image': f'{begin}.png'}]]
        shown += [[{'type': 'image', 'image': f'{(begin + at) % 4}.png'}] for at in range(1, len(steps))]
        both = zip(shown, steps, strict=True)
        return [
            turn
            for seen, done in both
            for turn in (
                {'role': 'user', 'content': seen},
                {'role': 'assistant', 'content': [{'type': 'action', 'action': done}]},
            )
        ]

    write_rows(folder / 'episodes.jsonl', [{'messages': turns(row % 4, acted(), acted())} for row in range(8)])
    pairs = [
        {
            'prompt': (whole := turns(row % 4, acted(), acted()))[:1],
            'chosen': whole[1:],
            'rejected': turns(row % 4, acted(), acted())[1:],
        }
        for row in range(4)
    ]
    write_rows(folder / 'pairs.jsonl', pairs)
    return folder


def test_an_arm_learns_by_tokens_and_keeps_its_statistics(arm: Path, tiny: Tiny, tmp_path: Path) -> None:
    model, common = tiny('qwen2_5_vl'), {'model_max_length': 256, 'max_steps': 2}
    first, second = tmp_path / 'sft', tmp_path / 'dpo'
    given = {'action_tokens': 'tail', 'action_bins': 16, 'action_dimensions': '[x, y, gripper]'}
    given['action_as_they_are'] = '[gripper]'
    told = succeed(
        sft(first, model, arm / 'episodes.jsonl', template='Messages', **common, **given),
        pair=ACTING,
    )
    assert '3 numbers (x, y, gripper); by the tail of the vocabulary from id' in told
    space = read_action_space(first / 'slice_end')
    (name,) = space.statistics
    rows = np.array(
        [turn['content'][0]['action'] for row in lines(arm / 'episodes.jsonl') for turn in row['messages'][1::2]]
    )
    assert name == 'episodes.jsonl' == space.dataset
    np.testing.assert_allclose(space.of().low, np.quantile(rows, 0.01, axis=0), rtol=1e-9)
    np.testing.assert_allclose(space.of().mean, rows.mean(0), rtol=1e-9)
    assert space.of().mask == (True, True, False) and (space.chunk, space.executed) == (1, 1)
    # Pairs have other numbers, and the policy keeps what a token stands for. So does its adapter.
    lora = {'use_lora': True, 'lora_r': 2, 'learning_rate': 1e-3}
    argv = sft(second, first / 'slice_end', arm / 'pairs.jsonl', template='Preference', **common, **lora)
    succeed(argv, pair=ACTING, algorithm=named('dpo'))
    assert read_action_space(second / 'slice_end') == space
    assert json.loads((second / 'slice_end' / 'action_space.json').read_text())['dataset'] == name
    assert lines(second / 'metrics.jsonl')[-1]['train/preference_loss'] > 0


@pytest.mark.parametrize(('name',), in_tiers([('grpo',), ('saferlhf',)], [('saferlhf',)]))
def test_a_robot_learns_in_its_room(name: str, room: Path, tiny: Tiny, tmp_path: Path) -> None:
    space = replace(read_action_space_of_room(), tokens='words')
    model = tmp_path / 'model'
    link(tiny('qwen2_5_vl'), model)
    write_action_space(model, replace(space, tokens='tail', first_ids=(300,)))
    settings = {
        'train_template_kwargs': '{keep_columns: True}',
        'environment': 'hot_floor',
        'max_turns': 4,
        'max_new_tokens': 2,
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'model_max_length': 512,
        'max_steps': 2,
        'log_completions': 1,
        'emit_temperature': '{action: 1.6}',
        **({'critic_warmup_steps': 1, 'critic_lr': 1e-3} if name == 'saferlhf' else {}),
    }
    argv = sft(tmp_path / 'out', model, room / 'prompts.jsonl', template='Prompts', **settings)
    told = succeed(argv, pair=ACTING, algorithm=named(name))
    for record in metrics_of(tmp_path / 'out'):
        assert record['train/rollout_drift'] < 1e-5 and record['train/turns'] == 4
        assert 1.0 < record.get('train/entropy', 1.1) <= np.log(5) + 1e-6
    if name == 'saferlhf':
        first, second = metrics_of(tmp_path / 'out')
        # The critics of what events cost learn first, and their bound is one of events.
        assert 'train/policy_loss' not in first and 'train/policy_loss' in second
        assert first['train/multiplier'] == pytest.approx(0.3) and second['train/multiplier'] < 1
        assert 'defaults for costs of an environment: threshold: 0.1, lambda_init: 0.3' in told
    written = lines(tmp_path / 'out' / 'completions.jsonl')
    names = {turn['text'] for record in written for turn in record['turns'] if turn['role'] == 'assistant'}
    assert len(names) > 2 and names <= {*space.names}
    assert read_action_space(tmp_path / 'out' / 'slice_end').first_ids == (300,)


def read_action_space_of_room() -> Any:
    """The space of the room."""
    from align_anything.environments.base import get_environment

    return get_environment('hot_floor').actions


def link(model: Path, out: Path) -> None:
    """A checkpoint with the files of another one, to put further ones beside them."""
    out.mkdir()
    for file in model.iterdir():
        (out / file.name).symlink_to(file)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({}, 'has no action space: set action_cfgs.action_tokens to tail'),
        ({'action_tokens': 'words'}, 'numbers are not written as words'),
        ({'action_tokens': 'tail', 'action_normalization': 'mean_std'}, 'bins stand for -1 to 1, and mean_std has no'),
        ({'action_tokens': 'tail', 'action_dimensions': '[x, y]'}, 'has 2 dimensions (x, y), but the actions of the'),
        ({'action_tokens': 'tail', 'action_as_they_are': '[grip]'}, "no dimension is 'grip', but x0, x1, x2"),
        ({'action_tokens': 'tail', 'action_executed': 2}, '2 steps are done of a chunk of 1'),
        ({'action_tokens': 'tail', 'action_names': '[a]', 'action_bins': 8}, 'named actions are no numbers'),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str, arm: Path, tiny: Tiny, tmp_path: Path) -> None:
    argv = sft(tmp_path / 'out', tiny('qwen2_5_vl'), arm / 'episodes.jsonl', template='Messages', **settings)
    (ended,) = run(argv, pair=ACTING)
    assert ended.code == 2 and words in ' '.join(ended.output.split()), ended.output


AT_ONCE = {'action_decoding': 'parallel', 'action_chunk': 2}


@pytest.mark.extended
def test_turns_said_at_once_are_learned_and_stay_so(arm: Path, tiny: Tiny, tmp_path: Path) -> None:
    """SFT makes them so, and what trains its checkpoint later need not say it again; a run that was ended goes on."""
    model, common = tiny('qwen2_5_vl'), {'model_max_length': 256, 'max_steps': 2}
    given = {'action_tokens': 'tail', 'action_bins': 16, **AT_ONCE}
    first = tmp_path / 'sft'
    settings = {**common, **given, 'max_steps': 3, 'save_interval': 1, 'save_total_limit': 2}
    told = succeed(sft(first, model, arm / 'episodes.jsonl', template='Messages', **settings), pair=ACTING)
    assert '2 steps in a turn said at once, 2 of them done' in told
    assert "falling back to 'padded'" not in told and read_action_space(first / 'slice_end').decoding == 'parallel'
    again = tmp_path / 'again'
    argv = sft(again, model, arm / 'episodes.jsonl', template='Messages', **settings)
    (ended,) = run(argv, pair=ACTING, before=dies_while_saving('slice_2'))
    assert ended.code is None
    assert f'resumed from {again}/slice_1 after' in succeed([*argv, '--resume', 'auto'], pair=ACTING)
    assert_same(first, again)
    for name, layout in (('dpo', 'shared_prefix'), ('kto', 'padded'), ('simpo', 'packed')):
        argv = sft(tmp_path / name, first / 'slice_end', arm / 'pairs.jsonl', template='Preference', **common)
        told = succeed([*argv, '--layout', layout], pair=ACTING, algorithm=named(name))
        assert "falling back to 'padded'" not in told
        assert read_action_space(tmp_path / name / 'slice_end') == read_action_space(first / 'slice_end')
    argv = sft(tmp_path / 'rm', first / 'slice_end', arm / 'pairs.jsonl', template='Preference', **common)
    (ended,) = run(argv, pair=ACTING, algorithm=named('rm'))
    assert ended.code == 2 and 'would see placeholders in the place of what was done' in ' '.join(ended.output.split())
    succeed([*argv, '--action_decoding', 'autoregressive'], pair=ACTING, algorithm=named('rm'))


@pytest.mark.extended
@pytest.mark.parametrize('name', ['grpo', 'ppo', 'rloo'])
@pytest.mark.parametrize('layout', ['padded', 'shared_prefix'])
def test_a_robot_that_says_its_turns_at_once_learns_in_its_room(
    name: str, layout: str, room: Path, tiny: Tiny, tmp_path: Path
) -> None:
    model = tmp_path / 'model'
    link(tiny('qwen2_5_vl'), model)
    space = replace(read_action_space_of_room(), chunk=3, executed=2, decoding='parallel')
    write_action_space(model, replace(space, tokens='tail', first_ids=(300,)))
    settings = {
        'train_template_kwargs': '{keep_columns: True}',
        'environment': 'hot_floor',
        'max_turns': 3,
        'max_new_tokens': 4,
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'model_max_length': 512,
        'max_steps': 2,
        'emit_temperature': '{action: 1.6}',
        'layout': layout,
        **({'critic_lr': 1e-3} if name == 'ppo' else {}),
    }
    argv = sft(tmp_path / 'out', model, room / 'prompts.jsonl', template='Prompts', **settings)
    told = succeed(argv, pair=ACTING, algorithm=named(name))
    assert "falling back to 'padded'" not in told
    for record in metrics_of(tmp_path / 'out'):
        assert record['train/rollout_drift'] < 1e-5 and record['train/response_length'] >= 9
    assert read_action_space(tmp_path / 'out' / 'slice_end').decoding == 'parallel'
