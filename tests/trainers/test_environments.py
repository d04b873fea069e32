"""Whole runs in environments: every online algorithm, ranks whose episodes differ in length, kills, what is told."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.configs.online import OnlineRunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import Example
from align_anything.environments import Environment, remote
from align_anything.rollouts.experience import responses_of
from align_anything.trainers.launch import settings_of
from align_anything.trainers.loops import online
from align_anything.trainers.loops.crediting import credited, over_limit
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.checks import check_online
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import TEXT, lines, run, sft, text_rows, write_rows
from tests.trainers.test_online import dies_in, metrics_of, named
from tests.trainers.test_resume import assert_same

WORLD = """
import numpy as np
from PIL import Image

from align_anything.core.types import Audio, Video
from align_anything.environments import Environment, Observation, Step


class World(Environment):
    def __init__(self, shows: str = '', breaks: int = 0):
        self.shows, self.breaks = shows, breaks

    def reset(self, row, seed):
        self.turn, self.seed = 0, seed
        return self.shown(f'Begin {seed % 97}.')

    def shown(self, text):
        if not self.shows:
            return Observation(text)
        frames = np.full((2 + 2 * self.turn, 56, 56, 3), self.seed % 256, np.uint8)
        media = {
            'image': Image.new('RGB', (56, 28 + 28 * self.turn), (40, self.seed % 256, 9)),
            'video': Video(frames, np.arange(len(frames)) / 2, 2.0),
            'audio': Audio(np.sin(np.arange(4000 + 1600 * self.turn) * 0.2).astype(np.float32), 16_000),
        }
        return Observation([{'role': 'user', 'content': [{'type': self.shows, self.shows: media[self.shows]}, text]}])

    def step(self, said):
        self.turn += 1
        letters = sum(map(ord, said.text))
        if self.breaks and letters % self.breaks == 1 % self.breaks:
            raise OSError('it broke')
        done = letters % 4 == self.turn % 4
        return Step(
            self.shown(f'Turn {self.turn}, {letters % 7}.'),
            reward=letters % 3,
            costs={'heat': letters % 2},
            done=done,
            info={'success': letters % 3 == 2},
        )
"""


class Toolbox(Environment):
    """One whose tools have no names."""

    tools = ({'type': 'function', 'function': {'parameters': {}}},)


ONLINE = sorted(name for name, kind in known_algorithms().items() if kind.generates and kind.trains and name != 'nft')
Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and an environment."""
    folder = tmp_path_factory.mktemp('acting')
    rows = text_rows(14)
    rows[5]['instruction'] = 'sun ' * 300
    write_rows(folder / 'rows.jsonl', rows)
    write_rows(folder / 'held-out.jsonl', text_rows(6, seed=1))
    (folder / 'world.py').write_text(WORLD)
    return folder


def argv(folder: Path, output: Path, model: Path, *more: str, **changes: Any) -> list[str]:
    """2 prompts x 3 episodes a rank and rollout. A tiny model ends no turn, so stop strings do."""
    settings = {
        'environment': f'{folder}/world.py:World',
        'max_turns': 3,
        'max_new_tokens': 6,
        'stop': '[a, e, i, o, u, s]',
        'model_max_length': 256,
        'num_generations': 3,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'update_iters': 2,
        'max_skipped_ratio': 0.5,
        'max_steps': 8,
        'ds_cfgs': 'ds_z2_config.json',
        **changes,
    }
    return sft(output, model, folder / 'rows.jsonl', *more, **settings)


def test_episodes_of_unequal_length_are_trained_on_and_told(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {
        'environment_kwargs': '{breaks: 7}',
        'max_failures': 1,
        'seed': 2,
        'log_completions': 1,
        'eval_datasets': folder / 'held-out.jsonl',
        'eval_template': 'Instruction',
        'eval_strategy': 'steps',
        'eval_interval': 8,
        'save_best': 'success',
    }
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    assert [record['step'] for record in records] == [4, 8]
    for record in records:
        assert record['train/rollout_drift'] < 1e-5, 'what is trained is what was sampled'
        assert 1 < record['train/turns'] < 3 and record['train/tool_calls'] == 0
        assert 0 < record['train/success'] < 1 and 0 <= record['train/truncated'] <= 1
        assert record['train/response_length'] <= 6 * record['train/turns']
    failed = lines(tmp_path / 'failed_episodes.jsonl')
    assert len(failed) >= sum(record['train/failed_episodes'] for record in records) > 0
    assert {record['reason'] for record in failed} == {'OSError: it broke'}
    (evaluated,) = (record for record in lines(tmp_path / 'metrics.jsonl') if 'eval/reward' in record)
    assert {'eval/turns', 'eval/success'} <= evaluated.keys()
    written = lines(tmp_path / 'completions.jsonl')
    several = [record for record in written if len(record['turns']) > 2]
    assert several and all(record['ended'] in ('done', 'turns', 'tokens') for record in written)
    assert [turn['role'] for turn in several[0]['turns']][:3] == ['assistant', 'user', 'assistant']
    assert several[0]['turns'][1]['text'].startswith('Turn 1, ') and '\n\nBegin ' in written[0]['prompt']
    assert several[0]['turns'][1]['text'] in (tmp_path / 'completions.html').read_text()


@pytest.mark.parametrize(('name',), in_tiers([(name,) for name in ONLINE], [('online_dpo',), ('saferlhf',)]))
def test_every_online_algorithm_learns_from_responses_with_holes(
    folder: Path, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    changes: dict[str, Any] = {'max_steps': 4, 'ds_cfgs': 'ds_z0_config.json', 'missing_eos_penalty': 0.1}
    changes |= {
        'ppo': {'critic_lr': 1e-3, 'overlong_buffer': 2, 'bootstrap_truncated': True},
        # What these are called after is only what they begin with.
        'ppo_vllm': {'use_vllm': False},
        'ppo_remote_rm': {'remote_rm_url': 'null'},
        'saferlhf': {'critic_lr': 1e-3, 'threshold': 0.1, 'lambda_init': 1},
    }.get(name, {})
    (ended,) = run(argv(folder, tmp_path, tiny('qwen2'), **changes), algorithm=named(name))
    assert ended.code == 0, ended.output
    records = metrics_of(tmp_path)
    assert records[-1]['step'] == 4 and records[0]['train/turns'] > 1
    assert all(record['train/rollout_drift'] < 1e-5 for record in records)
    if name == 'saferlhf':
        assert 0 < records[0]['train/reward/cost'] and 'train/multiplier' in records[0]


CREDITED = [('grpo', 'zero'), ('ppo', 'keep'), ('saferlhf', 'drop'), ('rloo', 'drop')]


@pytest.mark.parametrize(('name', 'on_limit'), in_tiers(CREDITED, CREDITED[2:3]))
def test_turns_are_credited_one_by_one(folder: Path, tiny: Tiny, tmp_path: Path, name: str, on_limit: str) -> None:
    changes: dict[str, Any] = {'credit': 'turn', 'on_limit': on_limit, 'max_steps': 6, 'max_turns': 3}
    changes |= {'num_generations': 6, 'per_device_train_batch_size': 12, 'log_completions': 1}
    changes |= {
        'ppo': {'critic_lr': 1e-3},
        'rloo': {'importance_level': 'token', 'loss_aggregation': 'token-mean'},
        'saferlhf': {'critic_lr': 1e-3, 'threshold': 0.1, 'lambda_init': 1},
    }.get(name, {})
    seen = tmp_path / 'seen.txt'
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), 2, algorithm=named(name), before=writes_down(seen))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    assert records[-1]['step'] == 6 and all(record['train/rollout_drift'] < 1e-5 for record in records)
    # What is told is told of all that was sampled.
    assert all(0 < record['train/truncated'] < 1 for record in records)
    lost, rewards, of_lost, costs = map(sum, zip(*(map(float, line.split()) for line in open(seen)), strict=True))
    assert rewards > 0 and (costs > 0) == (name == 'saferlhf')
    assert (lost > 0) == (on_limit != 'drop') and (of_lost > 0) == (on_limit == 'keep')
    worth = {(record['ended'] == 'done', bool(record['reward'])) for record in lines(tmp_path / 'completions.jsonl')}
    assert (True, True) in worth and ((False, True) in worth) == (on_limit != 'zero')


def writes_down(file: Path) -> Callable[[int], None]:
    """Of each rollout the episodes over a limit, and the sums of rewards, of those over a limit, and of costs."""

    def before(rank: int) -> None:
        def seen(examples: list[Example], cfgs: OnlineRunCfgs) -> dict[str, Any]:
            found, lost = credited(examples, cfgs), over_limit(examples)
            units = torch.tensor([response.units for response in responses_of(examples)], dtype=torch.long)
            of_lost = lost.repeat_interleave(units)
            rewards = found['turn_rewards']
            costs = 0.0 if found['turn_costs'] is None else float(found['turn_costs'].sum())
            with open(file, 'a') as opened:
                opened.write(f'{int(lost.sum())} {float(rewards.sum())} {float(rewards[of_lost].sum())} {costs}\n')
            return found

        online.credited = seen

    return before


@pytest.mark.extended
@pytest.mark.parametrize(('name', 'workers'), [('ppo', 0), ('grpo', 0), ('grpo', 2)])
def test_killed_in_an_episode(folder: Path, tiny: Tiny, tmp_path: Path, name: str, workers: int) -> None:
    changes = {'max_steps': 8, 'save_interval': 4, 'save_total_limit': 2, 'log_completions': 1}
    changes |= {'environment_workers': workers}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    ended = run(argv(folder, whole, tiny('qwen2'), **changes), 2, algorithm=named(name))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    run(argv(folder, broken, tiny('qwen2'), **changes), 2, algorithm=named(name), before=dies_in('rollout', 4))
    assert (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    ended = run(argv(folder, broken, tiny('qwen2'), '--resume', 'auto', **changes), 2, algorithm=named(name))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert_same(whole, broken)
    assert (broken / 'completions.jsonl').read_text() == (whole / 'completions.jsonl').read_text()


@pytest.mark.extended
def test_a_served_environment_is_the_same(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    name, url = f'{folder}/world.py:World', f'http://127.0.0.1:{port}'
    command = [sys.executable, '-m', 'align_anything.cli', 'serve-environment', name, '--port', str(port)]
    with subprocess.Popen([*command, '--workers', '2']) as server:
        try:
            for environment in (name, url):
                output = tmp_path / ('served' if environment == url else 'here')
                (ended,) = run(argv(folder, output, tiny('qwen2'), environment=environment), algorithm=named('grpo'))
                assert ended.code == 0, ended.output
        finally:
            server.terminate()
    assert_same(tmp_path / 'here', tmp_path / 'served')


@pytest.mark.extended
@pytest.mark.parametrize(
    ('stage', 'pair', 'family', 'shows'),
    [
        (2, 'text_image_to_text', 'qwen2_5_vl', 'image'),
        (3, 'text_image_to_text', 'qwen2_5_vl', 'image'),
        (3, 'text_video_to_text', 'qwen2_vl', 'video'),
        (2, 'text_audio_to_text', 'qwen2_audio', 'audio'),
        (2, 'any_to_text', 'qwen2_5_omni_thinker', 'video'),
    ],
)
def test_a_medium_in_every_turn(
    folder: Path, tiny: Tiny, tmp_path: Path, stage: int, pair: str, family: str, shows: str
) -> None:
    changes = {
        'environment_kwargs': f'{{shows: {shows}}}',
        'model_max_length': 512,
        'max_steps': 4,
        'log_completions': 1,
    }
    changes |= {'ds_cfgs': f'ds_z{stage}_config.json'}
    trained, algorithm = find_run(pair, 'grpo')
    ended = run(argv(folder, tmp_path, tiny(family), **changes), 2, trained, algorithm=algorithm)
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert metrics_of(tmp_path)[0]['train/rollout_drift'] < 1e-4
    assert any(record.get('media') for record in lines(tmp_path / 'completions.jsonl'))


def test_too_many_failures_end_the_run_on_every_rank(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {'environment_kwargs': '{breaks: 1}', 'stop': '[a, e, i, o, u, s, t, n]'}
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), 2, algorithm=named('grpo'))
    assert all(item.code not in (0, None) for item in ended)
    assert 'OSError: it broke' in ended[0].output and 'max_failures' in ended[0].output


@pytest.mark.extended
@pytest.mark.parametrize('on_failure', ['drop', 'zero'])
def test_where_nothing_but_failures_comes_of_a_step_the_run_ends(
    folder: Path, tiny: Tiny, tmp_path: Path, on_failure: str
) -> None:
    changes = {'environment_kwargs': '{breaks: 1}', 'max_failures': 1, 'on_failure': on_failure}
    changes |= {'max_new_tokens': 24, 'stop': '[a, e, i, o, u, s, t, n]'}
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), 2, algorithm=named('grpo'))
    assert all(item.code not in (0, None) for item in ended)
    told = (
        r'all of the last (\d+) episodes failed, so that nothing is left. The first, of .*: OSError: it broke \(\1 of'
    )
    assert re.search(told, ' '.join(ended[0].output.split())), ended[0].output


def test_a_template_without_tools_is_refused(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    (ended,) = run(argv(folder, tmp_path, tiny('qwen2'), environment='calculator'), algorithm=named('grpo'))
    assert ended.code not in (0, None) and 'does not write tools, their calls and what they return' in ended.output


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'environment': 'calculater'}, "unknown environment 'calculater'. Did you mean 'calculator'"),
        ({'environment': 'number_game', 'environment_kwargs': '{hihg: 3}'}, "no option 'hihg'. Did you mean 'high'"),
        ({'environment': 'number_game', 'environment_kwargs': '{high: 0}'}, 'there is nothing to guess'),
        ({'environment': f'{__file__}:Toolbox'}, 'environment_cfgs.environment: its tools are none: tool 0'),
        ({'max_episode_tokens': 300}, 'is more than model_cfgs.model_max_length = 256'),
        ({'max_episode_tokens': 6}, 'holds no turn of model_cfgs.max_new_tokens = 6'),
        ({'environment': None}, 'it means nothing without environment'),
        ({'credit': 'turn', 'normalize_reward': True}, 'train_cfgs.normalize_reward brings scores of whole episodes'),
        ({'credit': 'turn', 'importance_level': 'sequence'}, 'importance_level sequence is one ratio'),
        ({'environment_timeout': 3}, 'nothing can end an environment that hangs in the process that trains'),
        ({'environment': 'http://127.0.0.1:9'}, 'http://127.0.0.1:9 cannot be reached'),
        ({'environment': 'http://127.0.0.1:9', 'environment_workers': 2}, 'the server of the environment decides'),
        ({'environment': 'http://127.0.0.1:9', 'environment_kwargs': '{high: 3}'}, 'the server of the environment'),
        ({'environment': 'http://127.0.0.1:9', 'environment_timeout': 3}, 'the server of the environment decides'),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, 'ALLOWANCE', 0.1)
    with pytest.raises(SettingsError) as refused:
        resolved = settings_of(TEXT, named('grpo'), argv(folder, tmp_path, Path('model'), **changes), {})
        check_online(resolved.cfgs, resolved.algorithm)
    assert reason in str(refused.value)


def test_what_generates_nothing_has_no_environment(folder: Path, tmp_path: Path) -> None:
    given = sft(tmp_path, Path('model'), folder / 'rows.jsonl', environment='number_game')
    with pytest.raises(SettingsError, match='environment'):
        settings_of(PAIRS['text_to_text'], find_run('text_to_text', 'sft')[1], given, {})
