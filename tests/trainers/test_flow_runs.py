"""Whole runs of a pi0: on demonstrations, on pairs of them, and in a world, by draws and by denoising steps."""

from __future__ import annotations

import json
import shutil
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
from align_anything.models.action_space import read_action_space
from align_anything.rollouts.flow import FlowRollouts
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import die, lines, run, sft, succeed, weights, write_rows
from tests.trainers.test_resume import assert_same

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
    rows = [row['messages'] for row in lines(folder / 'demonstrations.jsonl')]
    pairs = [{'chosen': first_turn(messages), 'rejected': first_turn(messages, -1)} for messages in rows]
    write_rows(folder / 'pairs.jsonl', pairs)
    judged = [
        {'prompt': messages[:1], 'response': first_turn(messages, sign)[1:], 'label': sign > 0}
        for messages in rows
        for sign in (1, -1)
    ]
    write_rows(folder / 'judged.jsonl', judged)
    return folder


def first_turn(messages: list[dict[str, Any]], sign: float = 1) -> list[dict[str, Any]]:
    """What is seen first, and a chunk of what is done then, or of its opposite."""
    steps = [step for turn in messages[1:8:2] for step in turn['content'][0]['action']]
    chunk = [[sign * number for number in step] for step in steps]
    return [messages[0], {'role': 'assistant', 'content': [{'type': 'action', 'action': chunk}]}]


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
        'epochs': 4,
        'learning_rate': 1e-3,
        'train_size': 6,
        'draws_per_sample': 2,
    }
    output = tmp_path / 'sft'
    ended = run(
        argv(output, tiny('pi0'), folder / 'demonstrations.jsonl', ds_cfgs='ds_z2_config.json', **changes), 2, ACTING
    )
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


@pytest.mark.extended
@pytest.mark.parametrize('name', ['dpo', 'kto'])
def test_preferences_are_learned_from_draws(folder: Path, tiny: Tiny, tmp_path: Path, name: str) -> None:
    rows, template = {'dpo': ('pairs', 'Preference'), 'kto': ('judged', 'Unpaired')}[name]
    data = folder / f'{rows}.jsonl'
    changes = {'template': template, 'epochs': 4, 'per_device_train_batch_size': 5, 'scale_coeff': 0.5}
    changes |= {'eval_datasets': data, 'eval_template': template, 'eval_strategy': 'epoch', 'learning_rate': 3e-4}
    succeed(argv(tmp_path, tiny('pi0'), data, **changes), pair=ACTING, algorithm=named(name))
    losses = metric(tmp_path, 'eval/loss')
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
    ended = run(
        argv(tmp_path, tiny('pi0'), folder / 'prompts.jsonl', **IN_WORLD | own), ranks, ACTING, algorithm=named(name)
    )
    assert [item.code for item in ended] == [0] * ranks, ended[0].output
    turns = metric(tmp_path, 'train/turns')
    assert turns and all(1 <= number <= 3 for number in turns)
    if name != 'online_dpo':
        assert max(metric(tmp_path, 'train/rollout_drift')) < 1e-5


@pytest.mark.extended
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


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ('rm', 'pairs', {'template': 'Preference'}, 'score no episodes'),
    ('grpo', 'prompts', IN_WORLD | {'temperature': 0.5}, 'noise level instead of a temperature'),
    ('simpo', 'pairs', {'template': 'Preference'}, 'simpo needs of each unit'),
    ('grpo', 'prompts', {'template': 'Prompts'}, 'environment_cfgs.environment'),
    ('grpo', 'prompts', IN_WORLD | {'sde_window': 3}, 'does not fit'),
    ('sft', 'demonstrations', {'gradient_checkpointing': True}, 'keys and values of the language model'),
    ('sft', 'demonstrations', {'resolution': 64}, 'denoises actions'),
]


@pytest.mark.parametrize(('name', 'rows', 'changes', 'told'), in_tiers(REFUSED, REFUSED[:2]))
def test_what_it_cannot_do_is_named_before_a_model_loads(
    folder: Path, tiny: Tiny, tmp_path: Path, name: str, rows: str, changes: dict[str, Any], told: str
) -> None:
    (ended,) = run(argv(tmp_path, tiny('pi0'), folder / f'{rows}.jsonl', **changes), pair=ACTING, algorithm=named(name))
    assert ended.code == 2 and told in ' '.join(ended.output.split()), ended.output


@pytest.mark.extended
def test_statistics_of_data_are_stored_where_the_checkpoint_has_none(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny('pi0'), tmp_path / 'bare'))
    (bare / 'action_space.json').unlink()
    file = bare / 'processor_config.json'
    file.write_text(json.dumps({name: value for name, value in read_json(file).items() if 'actions' not in name}))
    changes = {'action_dataset': 'table', 'max_steps': 2}
    succeed(argv(tmp_path / 'run', bare, folder / 'demonstrations.jsonl', **changes), pair=ACTING)
    space = read_action_space(saved(tmp_path / 'run'))
    turns = [
        turn for row in lines(folder / 'demonstrations.jsonl') for turn in row['messages'] if turn['role'] != 'user'
    ]
    steps = torch.tensor([step for turn in turns for step in turn['content'][0]['action']])
    assert list(space.of('table').mean) == pytest.approx(steps.mean(0).tolist(), abs=1e-5)
    assert list(space.of('table').std) == pytest.approx(steps.std(0).tolist(), rel=0.05)
    # The processor is told the same.
    assert read_json(saved(tmp_path / 'run') / file.name)['actions_mean'] == list(space.of().mean)


def dies_acting(step: int) -> Callable[[int], None]:
    """Rank 1 is killed in the second turn of the rollout after so many optimizer steps."""

    def before(rank: int) -> None:
        inner, calls = FlowRollouts.generate, []

        def watched(self, examples, sampling, tell=None):
            calls.append(self.version)
            if rank == 1 and calls.count(step) == 2:
                die()
            return inner(self, examples, sampling, tell)

        FlowRollouts.generate = watched

    return before


@pytest.mark.extended
def test_killed_in_an_episode(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {**IN_WORLD, 'max_steps': 8, 'save_interval': 4, 'save_total_limit': 2, 'ds_cfgs': 'ds_z2_config.json'}
    changes |= {'sde_window': 1}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    rows = folder / 'prompts.jsonl'
    succeed(argv(whole, tiny('pi0'), rows, **changes), 2, ACTING, algorithm=named('grpo'))
    run(argv(broken, tiny('pi0'), rows, **changes), 2, ACTING, dies_acting(4), named('grpo'))
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    succeed(argv(broken, tiny('pi0'), rows, '--resume', 'auto', **changes), 2, ACTING, algorithm=named('grpo'))
    assert_same(whole, broken)


@pytest.mark.extended
def test_any_cut_trains_alike(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    cuts = {'whole': (1, 4), 'cut': (2, 1)}
    rows, own = folder / 'demonstrations.jsonl', {'max_steps': 3, 'draws_per_sample': 2}
    for name, (ranks, size) in cuts.items():
        changes = {**own, 'per_device_train_batch_size': size, 'gradient_accumulation_steps': 4 // ranks // size}
        succeed(argv(tmp_path / name, tiny('pi0'), rows, **changes), ranks, ACTING)
    one, other = (weights(saved(tmp_path / name)) for name in cuts)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.extended
@pytest.mark.parametrize('stage', [2, 3])
def test_stages_of_zero_learn_alike(folder: Path, tiny: Tiny, tmp_path: Path, stage: int) -> None:
    for number in (0, stage):
        changes = {**IN_WORLD, 'ds_cfgs': f'ds_z{number}_config.json'}
        output = tmp_path / str(number)
        succeed(argv(output, tiny('pi0'), folder / 'prompts.jsonl', **changes), 2, ACTING, algorithm=named('grpo'))
    one, other = (weights(saved(tmp_path / str(number))) for number in (0, stage))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.extended
def test_half_precision_tells_times_exactly(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {**IN_WORLD, 'bf16': True, 'max_steps': 2}
    succeed(argv(tmp_path, tiny('pi0'), folder / 'prompts.jsonl', **changes), 1, ACTING, algorithm=named('grpo'))
    assert max(metric(tmp_path, 'train/rollout_drift')) < 0.05
