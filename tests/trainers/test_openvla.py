"""Runs of OpenVLA by code of its own, on a stand-in: recorded steps, and an arm that it moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedModel

from align_anything.algorithms.generate import Generate
from align_anything.environments import Environment, Observation, Said, Step
from align_anything.models.action_space import read_action_space
from align_anything.trainers.pairs import PAIRS
from tests.models.stand_ins.openvla import NORM_STATS, build_openvla
from tests.trainers.runs import lines, run, sft, succeed, write_rows
from tests.trainers.test_online import metrics_of, named

ACTING = PAIRS['text_video_to_action']
COMMON: dict[str, Any] = {'trust_remote_code': True, 'model_max_length': 128, 'max_steps': 2}


class Table(Environment):
    """An arm over a picture, which should close its gripper."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.steps = 0
        return self.shown()

    def shown(self) -> Observation:
        pixels = np.full((32, 32, 3), 40 * self.steps, np.uint8)
        return Observation([{'role': 'user', 'content': [{'type': 'image', 'image': Image.fromarray(pixels)}]}])

    def step(self, said: Said) -> Step:
        self.steps += 1
        values = said.actions.values[0].tolist()
        # Un-normalised by the percentiles of the dataset that was named; the gripper stays as it is.
        within = abs(values[0]) <= 0.5 and -2.0 <= values[1] <= 1.0 and abs(values[6]) <= 1.0
        return Step(self.shown(), reward=float(values[6] > 0) if within else -100.0, done=self.steps == 2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, recorded episodes of two steps, and prompts."""
    folder = tmp_path_factory.mktemp('openvla')
    build_openvla(folder / 'model')
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(folder / '0.png')

    def turn(*words: str) -> list[dict[str, Any]]:
        shown = [*({'type': 'text', 'text': text} for text in words), {'type': 'image', 'image': '0.png'}]
        values = [*random.uniform(-0.2, 0.2, 6).tolist(), 1.0]
        done = [{'type': 'action', 'action': values}]
        return [{'role': 'user', 'content': shown}, {'role': 'assistant', 'content': done}]

    write_rows(folder / 'episodes.jsonl', [{'messages': [*turn('wipe the table'), *turn()]} for _ in range(4)])
    write_rows(folder / 'prompts.jsonl', [{'prompt': f'wipe table {row}'} for row in range(4)])
    return folder


def test_it_learns_recorded_steps_and_keeps_the_statistics_of_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    argv = sft(tmp_path, folder / 'model', folder / 'episodes.jsonl', template='Messages', **COMMON)
    told = succeed([*argv, '--action_dataset', 'bridge_orig'], pair=ACTING)
    assert '7 numbers (x, y, z, roll, pitch, yaw, gripper); by the tail of the vocabulary from id 368' in told
    space = read_action_space(tmp_path / 'slice_end')
    assert space.dataset == 'bridge_orig' and space.of().low == tuple(NORM_STATS['bridge_orig']['action']['q01'])
    first, second = (record['train/loss'] for record in lines(tmp_path / 'metrics.jsonl') if 'train/loss' in record)
    assert second < first
    config = json.loads((tmp_path / 'slice_end' / 'config.json').read_text())
    assert config['norm_stats'] == NORM_STATS and 'AutoModelForVision2Seq' in config['auto_map']
    assert (tmp_path / 'slice_end' / 'modeling_prismatic.py').exists()


@pytest.mark.extended
def test_it_moves_an_arm_and_is_told_what_that_was_worth(folder: Path, tmp_path: Path) -> None:
    settings = {
        **COMMON,
        'environment': f'{__file__}:Table',
        'max_turns': 2,
        'max_new_tokens': 8,
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'log_completions': 1,
    }
    argv = sft(tmp_path, folder / 'model', folder / 'prompts.jsonl', template='Prompts', **settings)
    (failed,) = run(argv, pair=ACTING, algorithm=named('grpo'))
    assert failed.code and 'name one of bridge_orig, fractal20220817_data' in failed.output
    (failed,) = run([*argv, '--action_dataset', 'bridge'], pair=ACTING, algorithm=named('grpo'))
    assert failed.code
    assert 'no statistics of bridge in the action space (bridge_orig, fractal20220817_data)' in failed.output
    succeed([*argv, '--action_dataset', 'bridge_orig'], pair=ACTING, algorithm=named('grpo'))
    for record in metrics_of(tmp_path):
        assert record['train/rollout_drift'] < 1e-5 and record['train/turns'] == 2
        assert 0 <= record['train/reward'] <= 2
    assert lines(tmp_path / 'completions.jsonl')


def argv_of(folder: Path, output: Path, rows: str, *more: str) -> list[str]:
    """The command line of a run that trains nothing."""
    template = 'Messages' if rows == 'episodes' else 'Prompts'
    words = ['--model_name_or_path', folder / 'model', '--train_datasets', folder / f'{rows}.jsonl', '--bf16', 'False']
    words += ['--train_template', template, '--trust_remote_code', 'True', '--max_new_tokens', '8', *more]
    return [*map(str, words), '--output_dir', str(output), '--temperature', '0', '--num_workers', '0']


@pytest.mark.extended
def test_which_dataset_holds_is_said_where_nothing_is_trained(folder: Path, tmp_path: Path) -> None:
    def generated(*more: str) -> Any:
        return run(argv_of(folder, tmp_path / 'out', 'episodes', *more), pair=ACTING, algorithm=Generate)[0]

    def first_steps() -> list[list[float]]:
        return [record['responses'][0]['actions'][0][0] for record in lines(tmp_path / 'out' / 'generations.jsonl')]

    for more, words in (((), 'name one of bridge_orig, fractal20220817_data'), (('--action_dataset', 'b'), 'no stat')):
        ended = generated(*more)
        assert ended.code == 2 and words in ' '.join(ended.output.split())
    ended = generated('--action_dataset', 'bridge_orig')
    assert ended.code == 0, ended.output
    narrow = first_steps()
    ended = generated('--action_dataset', 'fractal20220817_data', '--overwrite_output_dir', 'True')
    assert ended.code == 0, ended.output
    for near, far in zip(narrow, first_steps(), strict=True):
        # The same tokens: the first number lies in [-0.5, 0.5] of the one, in [-2, 2] of the other.
        assert far[0] == pytest.approx(4 * near[0]) and far[1:] == pytest.approx(near[1:])


@pytest.mark.extended
@pytest.mark.parametrize('name', ['grpo', 'generate'])
def test_vllm_is_refused_before_weights_are_read(name: str, folder: Path, tmp_path: Path) -> None:
    more = ['--use_vllm', 'True', '--environment', f'{__file__}:Table', '--max_turns', '2', '--num_generations', '2']
    argv = argv_of(folder, tmp_path, 'prompts', '--action_dataset', 'bridge_orig', *more)
    if name == 'grpo':
        argv += ['--gradient_checkpointing', 'False', '--model_max_length', '128', '--max_steps', '2']
        argv[argv.index('--temperature') + 1] = '1'
    kind = named('grpo') if name == 'grpo' else Generate
    (ended,) = run(argv, pair=ACTING, algorithm=kind, before=reads_no_weights)
    assert ended.code == 2 and 'vllm_cfgs.use_vllm: vLLM has no class of OpenVLA' in ended.output, ended.output


def reads_no_weights(rank: int) -> None:
    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError('weights are read')

    PreTrainedModel.from_pretrained = never
