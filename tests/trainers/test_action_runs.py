"""Whole runs of models that act: data, preferences, judges, environments; ranks, kills, adapters, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.core.actions import ActionSpace
from align_anything.core.types import Conversation
from align_anything.models.acting.checkpoint import load_acting, load_action_spec
from align_anything.models.action_space import read_action_space
from align_anything.rollouts.acting import ActionRollouts
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.policies.acting import worlds
from tests.policies.acting.worlds import NAMED, NUMBERS, episode, small
from tests.trainers.runs import die, lines, run, sft, weights, write_rows
from tests.trainers.test_resume import assert_same

PAIR = PAIRS['text_video_to_action']
ONLINE = sorted(
    name
    for name, kind in known_algorithms().items()
    # That of vLLM is asked for by name, and vLLM generates no actions of these models.
    if kind.generates and kind.trains and name not in ('nft', 'ppo_vllm')
)
WORLD = f'{worlds.__file__}:Line'


def raw(turns: Conversation, folder: Path, name: str) -> list[dict[str, Any]]:
    """The conversation as rows write it, its pictures in files."""
    messages = []
    for number, turn in enumerate(turns):
        parts = []
        for part in turn['content']:
            if part['type'] == 'image':
                file = folder / f'{name}_{number}.png'
                part['image'].save(file)
                part = {'type': 'image', 'image': str(file)}
            elif part['type'] == 'action':
                done = part['action']
                part = {'type': 'action', 'action': done.names[0] if done.names else done.values.tolist()}
            parts.append(part)
        messages.append({'role': turn['role'], 'content': parts})
    return messages


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes, pairs of them that begin alike, prompts, and models."""
    folder = tmp_path_factory.mktemp('acting')
    shown = [raw(episode(1 + seed % 4, seed=seed), folder, f'e{seed}') for seed in range(12)]
    write_rows(folder / 'episodes.jsonl', [{'messages': messages} for messages in shown])
    numbers = [raw(episode(1 + seed % 3, NUMBERS, seed, chunk=1), folder, f'n{seed}') for seed in range(8)]
    write_rows(folder / 'numbers.jsonl', [{'messages': messages} for messages in numbers])
    pairs = []
    for seed in range(8):
        better, worse = shown[seed], [*shown[(seed + 5) % 12]]
        pairs.append({'prompt': better[:1], 'chosen': better[1:], 'rejected': worse[1:]})
    write_rows(folder / 'pairs.jsonl', pairs)
    prompts = [{'prompt': 'go to the left', 'place': number} for number in range(12)]
    write_rows(folder / 'prompts.jsonl', prompts)
    write_rows(folder / 'held-out.jsonl', prompts[:5])
    small(folder / 'named')
    small(folder / 'numbers', NUMBERS, head='gaussian')
    small(folder / 'l1', NUMBERS, head='l1')
    return folder


def data(
    folder: Path, output: Path, rows: str = 'episodes', model: str = 'named', *more: str, **changes: Any
) -> list[str]:
    template = {'pairs': 'Preference'}.get(rows, 'Messages')
    settings = {'model_max_length': None, 'gradient_checkpointing': None, 'log_interval': 1, **changes}
    return sft(output, folder / model, folder / f'{rows}.jsonl', *more, template=template, **settings)


def online(folder: Path, output: Path, *more: str, model: str = 'named', **changes: Any) -> list[str]:
    """2 prompts x 3 episodes a rank and rollout, which differ in length."""
    settings = {
        'environment': f'{worlds.__file__}:Pushed' if model in ('numbers', 'l1') else WORLD,
        'max_turns': 5,
        'model_max_length': None,
        'gradient_checkpointing': None,
        'num_generations': 3,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'update_iters': 2,
        'max_steps': 4,
        'log_interval': 1,
        **changes,
    }
    return sft(output, folder / model, folder / 'prompts.jsonl', *more, template='Prompts', **settings)


def named(name: str) -> Any:
    return find_run(PAIR.name, name)[1]


def succeed(argv: list[str], name: str, ranks: int = 1, **more: Any) -> str:
    ended = run(argv, ranks, PAIR, algorithm=named(name), **more)
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    return ended[0].output


def metrics(output: Path) -> list[dict[str, float]]:
    return [record for record in lines(output / 'metrics.jsonl') if 'train/loss' in record or 'train/reward' in record]


DATA: list[tuple[str, str, str, dict[str, Any]]] = [
    ('sft', 'episodes', 'named', {}),
    ('sft', 'numbers', 'l1', {}),
    ('dpo', 'pairs', 'named', {}),
    ('sft', 'numbers', 'numbers', {}),
    ('kto', 'pairs', 'named', {}),
    ('orpo', 'pairs', 'named', {}),
    ('simpo', 'pairs', 'named', {}),
    ('rm', 'pairs', 'named', {}),
]


@pytest.mark.parametrize(('name', 'rows', 'model', 'changes'), in_tiers(DATA, DATA[:1] + DATA[2:3] + DATA[-1:]))
def test_every_algorithm_learns_from_episodes(
    folder: Path, tmp_path: Path, name: str, rows: str, model: str, changes: dict[str, Any]
) -> None:
    succeed(data(folder, tmp_path, rows, model, **changes), name)
    assert len(metrics(tmp_path)) == (6 if rows == 'episodes' else 4)
    before, after = load_acting(folder / model, torch.float32).state_dict(), weights(tmp_path / 'slice_end')
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert read_action_space(tmp_path / 'slice_end') == load_action_spec(folder / model).space
    assert 'acting.register()' in (tmp_path / 'slice_end' / 'README.md').read_text()


@pytest.mark.parametrize(('name',), in_tiers([(name,) for name in ONLINE], [('saferlhf',)]))
def test_every_online_algorithm_learns_from_what_it_did(folder: Path, tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {
        'ppo': {'critic_lr': 1e-3, 'bootstrap_truncated': True},
        'ppo_remote_rm': {'remote_rm_url': 'null'},
        'saferlhf': {'critic_lr': 1e-3, 'threshold': 0.1, 'lambda_init': 1},
        'grpo': {'beta': 0.1, 'log_completions': 1},
    }.get(name, {})
    held_out = {'eval_datasets': folder / 'held-out.jsonl', 'eval_template': 'Prompts'}
    succeed(online(folder, tmp_path, **held_out, eval_strategy='steps', eval_interval=4, **changes), name, 2)
    records = [record for record in lines(tmp_path / 'metrics.jsonl') if 'train/turns' in record]
    assert records and 1 < records[0]['train/turns'] < 5
    if name != 'online_dpo':  # it learns from pairs, and compares with no sampled score
        assert all(record['train/rollout_drift'] < 1e-5 for record in records), 'what is trained is what was done'
    assert any('eval/success' in record for record in lines(tmp_path / 'metrics.jsonl'))
    if name == 'grpo':
        written = lines(tmp_path / 'completions.jsonl')
        assert written and any(record.get('media') for record in written)


@pytest.mark.parametrize('name', ['grpo', pytest.param('ppo', marks=pytest.mark.extended)])
def test_numbers_are_learned_from_too(folder: Path, tmp_path: Path, name: str) -> None:
    changes = {'grpo': {'beta': 0.1}, 'ppo': {'critic_lr': 1e-3}}[name]
    succeed(online(folder, tmp_path, model='numbers', **changes), name)
    records = [record for record in lines(tmp_path / 'metrics.jsonl') if 'train/turns' in record]
    assert all(record['train/rollout_drift'] < 1e-5 for record in records)
    moved = (
        weights(tmp_path / 'slice_end')['actor.log_std'] - load_acting(folder / 'numbers', torch.float32).actor.log_std
    )
    assert moved.abs().max() > 0


def dies_acting(step: int) -> Callable[[int], None]:
    """Rank 1 is killed in the second turn of the rollout after so many optimizer steps."""

    def before(rank: int) -> None:
        inner, calls = ActionRollouts.generate, []

        def watched(self, examples, sampling, tell=None):
            calls.append(self.version)
            if rank == 1 and calls.count(step) == 2:
                die()
            return inner(self, examples, sampling, tell)

        ActionRollouts.generate = watched

    return before


@pytest.mark.parametrize('name', ['ppo', pytest.param('grpo', marks=pytest.mark.extended)])
def test_killed_in_an_episode(folder: Path, tmp_path: Path, name: str) -> None:
    changes = {'max_steps': 8, 'save_interval': 4, 'save_total_limit': 2, 'ds_cfgs': 'ds_z2_config.json'}
    changes |= {'critic_lr': 1e-3} if name == 'ppo' else {}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    succeed(online(folder, whole, **changes), name, 2)
    run(online(folder, broken, **changes), 2, PAIR, dies_acting(4), named(name))
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    succeed(online(folder, broken, '--resume', 'auto', **changes), name, 2)
    assert_same(whole, broken)


@pytest.mark.extended
@pytest.mark.parametrize('stage', [2, 3])
def test_stages_of_zero_learn_alike(folder: Path, tmp_path: Path, stage: int) -> None:
    for number in (0, stage):
        succeed(online(folder, tmp_path / str(number), ds_cfgs=f'ds_z{number}_config.json'), 'grpo', 2)
    one, other = (weights(tmp_path / str(number) / 'slice_end') for number in (0, stage))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.extended
def test_any_cut_trains_alike(folder: Path, tmp_path: Path) -> None:
    cuts = {'whole': (1, {'per_device_train_batch_size': 4}), 'cut': (2, {'per_device_train_batch_size': 1})}
    for name, (ranks, changes) in cuts.items():
        changes['gradient_accumulation_steps'] = 4 // ranks // changes['per_device_train_batch_size']
        succeed(data(folder, tmp_path / name, **changes), 'sft', ranks)
    one, other = (weights(tmp_path / name / 'slice_end') for name in cuts)
    # Adam makes steps of the rate of gradients that are all but zero, whichever sign rounding gives them.
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
    for told in zip(*(lines(tmp_path / name / 'metrics.jsonl') for name in cuts), strict=True):
        for key in ('train/loss', 'train/grad_norm'):
            assert told[0][key] == pytest.approx(told[1][key], rel=1e-5)


def test_an_adapter_of_the_trunk(folder: Path, tmp_path: Path) -> None:
    lora = {'use_lora': True, 'r': 4, 'learning_rate': 1e-2}
    succeed(data(folder, tmp_path / 'one', **lora), 'sft')
    adapter = tmp_path / 'one' / 'slice_end'
    assert read_action_space(adapter) == NAMED and 'model.safetensors' not in {file.name for file in adapter.iterdir()}
    names = {name.split('.')[-3] for name in weights(adapter)}
    assert {'wq', 'w1', 'actor'} <= names
    succeed(online(folder, tmp_path / 'two', model=str(adapter), beta=0.1, **lora), 'grpo')
    assert weights(tmp_path / 'two' / 'slice_end').keys() == weights(adapter).keys()


class Sail(worlds.Line):
    actions = ActionSpace(names=('reef', 'tack'))


class Drone(worlds.Line):
    actions = ActionSpace(dimensions=('x', 'y', 'z'))


@pytest.mark.extended
def test_a_judge_of_episodes_rewards_them(folder: Path, tmp_path: Path) -> None:
    succeed(data(folder, tmp_path / 'judge', 'pairs'), 'rm')
    judge = tmp_path / 'judge' / 'slice_end'
    succeed(online(folder, tmp_path / 'run', reward_model_name_or_path=judge), 'grpo')
    assert any('train/reward/model' in record for record in lines(tmp_path / 'run' / 'metrics.jsonl'))


@pytest.mark.parametrize(
    ('name', 'model', 'changes', 'reason'),
    [
        (
            'grpo',
            'named',
            {'environment': None, 'max_turns': None, 'reward_functions': '[math]'},
            'environment_cfgs.environment is required',
        ),
        ('grpo', 'l1', {}, 'give a number that is better when it is higher'),
        ('online_dpo', 'l1', {}, 'says one action and no distribution'),
        ('grpo', 'named', {'use_vllm': True}, 'vllm_cfgs.use_vllm'),
        ('grpo', 'named', {'top_p': 0.5}, 'model_cfgs.top_p'),
        ('grpo', 'numbers', {'entropy_coeff': 0.1}, 'the log-density of a transition'),
        ('grpo', 'named', {'environment': 'calculator'}, 'calls none'),
        ('grpo', 'named', {'environment': f'{__file__}:Sail'}, 'knows none of the actions of the policy (left, right'),
        ('grpo', 'numbers', {'environment': f'{__file__}:Drone'}, 'has 3 numbers (x, y, z), and one of the policy 2'),
        ('grpo', 'numbers', {'environment': WORLD}, 'actions are names there (left, right, wait), and the policy says'),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, tmp_path: Path, name: str, model: str, changes: dict[str, Any], reason: str
) -> None:
    (ended,) = run(online(folder, tmp_path, model=model, **changes), 1, PAIR, algorithm=named(name))
    assert ended.code not in (0, None) and reason in ' '.join(ended.output.split())


def test_a_checkpoint_without_its_space_is_refused(folder: Path, tmp_path: Path) -> None:
    model = small(tmp_path / 'model')
    space = json.loads((model / 'action_space.json').read_text())
    (model / 'action_space.json').write_text(json.dumps({**space, 'names': ['left', 'right']}))
    (ended,) = run(data(folder, tmp_path / 'run', 'episodes', str(model)), 1, PAIR, algorithm=named('sft'))
    assert ended.code not in (0, None) and 'do not belong together: the model has 3 named actions' in ended.output
