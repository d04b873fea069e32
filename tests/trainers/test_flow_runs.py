"""Whole runs of a pi0: on demonstrations, on pairs of them, and in a world, by draws and by denoising steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PI0ForConditionalGeneration

from align_anything.cli.leaves import find_run
from align_anything.core.files import read_json
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.models.acting.pi0_checkpoint import idle
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import lines, run, sft, succeed, weights, write_rows

ACTING = PAIRS['text_video_to_action']
Tiny = Callable[..., Path]
IN_WORLD = {
    'environment': 'reach',
    'rollout_steps': 3,
    'max_turns': 3,
    'num_generations': 3,
    'per_device_prompt_batch_size': 2,
    'per_device_train_batch_size': 3,
    'max_steps': 4,
    'template': 'Prompts',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and prompts, and pairs: what goes to the disc, and what goes away from it."""
    folder = tmp_path_factory.mktemp('reach')
    write_demonstrations('reach', {}, folder, 10, prompts=8)
    rows = lines(folder / 'demonstrations.jsonl')
    write_rows(folder / 'pairs.jsonl', [{'chosen': row['messages'], 'rejected': away(row['messages'])} for row in rows])
    judged = [
        {'prompt': row['messages'][:1], 'response': (row['messages'] if good else away(row['messages']))[1:2], 'label': good}
        for row in rows
        for good in (True, False)
    ]
    write_rows(folder / 'judged.jsonl', judged)
    return folder


def away(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One turn in the other direction."""
    turns = json.loads(json.dumps(messages[:2]))
    part = turns[1]['content'][0]
    part['action'] = [[-number for number in step] for step in part['action']]
    return turns


def named(name: str) -> Any:
    return find_run('text_video_to_action', name)[1]


def argv(output: Path, model: Path, rows: Path, *more: Any, **changes: Any) -> list[str]:
    settings = {'template': 'Messages', 'log_interval': 1, 'model_max_length': None, 'learning_rate': 1e-3, **changes}
    return sft(output, model, rows, *more, **settings)


def metric(output: Path, name: str) -> list[float]:
    return [record[name] for record in lines(output / 'metrics.jsonl') if name in record]


def saved(output: Path) -> Path:
    return output / 'slice_end'


def test_sft_trains_what_something_hangs_on_and_reloads(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {
        'freeze_vision_tower': False,
        'eval_datasets': folder / 'demonstrations.jsonl',
        'eval_template': 'Messages',
        'eval_strategy': 'epoch',
        'epochs': 2,
        'draws_per_sample': 2,
    }
    output = tmp_path / 'sft'
    ended = run(argv(output, tiny('pi0'), folder / 'demonstrations.jsonl', ds_cfgs='ds_z2_config.json', **changes), 2, ACTING)
    assert [item.code for item in ended] == [0, 0], ended[0].output
    # Plain transformers loads it, under the names that published checkpoints have.
    models = [PI0ForConditionalGeneration.from_pretrained(own) for own in (tiny('pi0'), saved(output))]
    before, after = (dict(model.named_parameters()) for model in models)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith(idle(models[0].config))}
    losses = metric(output, 'eval/loss')
    assert losses[-1] < losses[0]
    # As it was: the space, and what the processor says of states.
    for file in ('action_space.json', 'processor_config.json'):
        assert read_json(saved(output) / file) == read_json(tiny('pi0') / file)
    card = (saved(output) / 'README.md').read_text()
    assert 'PI0ForConditionalGeneration.from_pretrained' in card


@pytest.mark.parametrize(('name',), in_tiers([('dpo',), ('kto',)], [('dpo',)]))
def test_preferences_are_learned_from_draws(folder: Path, tiny: Tiny, tmp_path: Path, name: str) -> None:
    rows, template = {'dpo': ('pairs', 'Preference'), 'kto': ('judged', 'Unpaired')}[name]
    changes = {'template': template, 'epochs': 3, 'scale_coeff': 5.0, 'per_device_train_batch_size': 4}
    succeed(argv(tmp_path, tiny('pi0'), folder / f'{rows}.jsonl', **changes), pair=ACTING, algorithm=named(name))
    losses = metric(tmp_path, 'train/loss')
    assert losses[-1] < losses[0]


ONLINE = ('grpo', 'rloo', 'reinforce_plus_plus', 'ppo', 'saferlhf', 'online_dpo')


@pytest.mark.parametrize(('name',), in_tiers([(name,) for name in ONLINE], [('grpo',)]))
def test_what_is_trained_is_what_was_sampled(folder: Path, tiny: Tiny, tmp_path: Path, name: str) -> None:
    own = {
        'ppo': {'critic_lr': 1e-3},
        'saferlhf': {'critic_lr': 1e-3, 'threshold': 0.1},
        'grpo': {'sde_window': 1, 'ds_cfgs': 'ds_z2_config.json', 'beta': 0.01},
        'online_dpo': {'num_generations': 2, 'per_device_train_batch_size': 2},
    }.get(name, {})
    ranks = 2 if name == 'grpo' else 1
    ended = run(argv(tmp_path, tiny('pi0'), folder / 'prompts.jsonl', **IN_WORLD | own), ranks, ACTING, algorithm=named(name))
    assert [item.code for item in ended] == [0] * ranks, ended[0].output
    turns = metric(tmp_path, 'train/turns')
    assert turns and all(1 <= number <= 3 for number in turns)
    if name != 'online_dpo':
        assert max(metric(tmp_path, 'train/rollout_drift')) < 1e-5


def test_adapters_go_on_both_transformers_and_are_loaded_again(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    lora = {'use_lora': True, 'r': 4, 'lora_alpha': 8, 'epochs': 1, 'learning_rate': 1e-2}
    first, second = tmp_path / 'first', tmp_path / 'second'
    succeed(argv(first, tiny('pi0'), folder / 'demonstrations.jsonl', **lora), pair=ACTING)
    names = weights(saved(first))
    for inside in ('language_model', 'dit', 'embed_action_time'):
        assert any(f'.{inside}.' in name and 'lora_B' in name for name in names)
    moved = {name for name, value in names.items() if 'lora_B' in name and value.any()}
    assert moved and not any('language_model.layers.1.mlp' in name for name in moved)
    succeed(argv(second, saved(first), folder / 'demonstrations.jsonl', **lora), pair=ACTING)
    assert (saved(second) / 'action_space.json').exists()


@pytest.mark.parametrize(
    ('name', 'rows', 'changes', 'told'),
    [
        ('rm', 'pairs', {'template': 'Preference'}, 'score no episodes'),
        ('simpo', 'pairs', {'template': 'Preference'}, 'simpo needs of each unit'),
        ('grpo', 'prompts', {'template': 'Prompts'}, 'environment_cfgs.environment is required'),
        ('grpo', 'prompts', IN_WORLD | {'sde_window': 3}, 'does not fit'),
        ('grpo', 'prompts', IN_WORLD | {'temperature': 0.5}, 'noise level instead of a temperature'),
        ('sft', 'demonstrations', {'gradient_checkpointing': True}, 'keys and values of the language model'),
        ('sft', 'demonstrations', {'resolution': 64}, 'denoises actions'),
    ],
)
def test_what_it_cannot_do_is_named_before_a_model_loads(
    folder: Path, tiny: Tiny, tmp_path: Path, name: str, rows: str, changes: dict[str, Any], told: str
) -> None:
    (ended,) = run(
        argv(tmp_path, tiny('pi0'), folder / f'{rows}.jsonl', **changes), pair=ACTING, algorithm=named(name)
    )
    assert ended.code == 2 and told in ' '.join(ended.output.split()), ended.output
