"""Episodes in an environment are generated, told and measured as answers are, greedily and sampled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.evaluate import Evaluate
from align_anything.cli.leaves import find_run
from align_anything.core.errors import SettingsError
from align_anything.metrics.samples import read_samples
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.evaluation.test_run import command, evaluate, results_of
from tests.harness.ranks import run_ranks
from tests.policies.acting import worlds
from tests.trainers.runs import IMAGE, TEXT, lines, run, write_rows
from tests.trainers.test_environments import WORLD, argv, folder
from tests.trainers.test_eval_tasks import told

__all__ = ['folder']

Tiny = Callable[..., Path]
ROWS = [{'prompt': f'{n} {"sun " * n}', 'answer': 'sea'} for n in range(4)]
OWN = 'def letters(completions):\n    return [len(c.response) for c in completions]\n'
OWN += 'def before(completions):\n    return [len(c.conversation) for c in completions]\n'


def given(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    (tmp_path / 'world.py').write_text(WORLD)
    (tmp_path / 'own.py').write_text(OWN)
    settings = {
        'environment': f'{tmp_path}/world.py:World',
        'environment_kwargs': '{breaks: 11}',
        'environment_retries': 0,
        'max_failures': 1,
        'max_skipped_ratio': 0.9,
        'max_turns': 3,
        'stop': '[a, e, i, o, u, s]',
        'num_generations': 3,
        'temperature': 1,
        'tasks': f'[{tmp_path}/own.py:letters, {tmp_path}/own.py:before]',
    }
    return {**settings, **changes}


def test_episodes_are_evaluated(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, settings = write_rows(tmp_path / 'rows.jsonl', ROWS), given(tmp_path, per_device_prompt_batch_size=1)
    results = results_of(command(tmp_path / 'out', tiny('qwen2'), rows, **settings))
    samples = read_samples(tmp_path / 'out')
    responses = [sample.response for sample in samples]
    assert results['responses'] == len(responses) > 6
    assert {len(response['turns']) for response in responses} > {1}
    found = results['metrics']
    for name in ('turns', 'cost', 'tool_calls', 'tool_errors', 'success'):
        # One that was cut before anybody told of its success had none, and where nobody told of costs there were none.
        told_of = [response['episode'].get(name) or 0 for response in responses]
        assert found[name]['value'] == pytest.approx(sum(told_of) / len(told_of)), name
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())['means']
    assert all(summary[name] == pytest.approx(found[name]['value']) for name in ('turns', 'cost', 'success'))
    assert any('cost' not in own['episode'] for own in responses)
    assert any(own['episode']['success'] is None for own in responses)
    (warned,) = re.findall(r'(\d+) episode\(s\) failed and are left out', caplog.text) or ['0']
    assert results['failed_episodes'] >= int(warned) > 0 and found['success']['responses'] == len(responses)
    assert 1 < found['turns']['value'] < 3 and found['turns']['better'] == found['cost']['better'] == 'lower'
    assert found['reward/environment']['interval'][0] < found['reward/environment']['interval'][1]
    # Metrics read the last answer, behind all that was said before.
    last = [[turn for turn in response['turns'] if turn['role'] == 'assistant'][-1] for response in responses]
    assert found['letters']['value'] == pytest.approx(sum(len(turn['content']) for turn in last) / len(last))
    before = [2 * response['episode']['turns'] - 1 for response in responses]
    assert found['before']['value'] == pytest.approx(sum(before) / len(before))
    assert all('\n\nBegin ' in sample.asked[0]['content'] for sample in samples)
    two = run_ranks(lambda rank: evaluate(TEXT, command(tmp_path / 'two', tiny('qwen2'), rows, **settings)))
    assert two == [results, None]
    greedy = results_of(command(tmp_path / 'greedy', tiny('qwen2'), rows, **{**settings, 'temperature': 0}))
    turns = [sample.response['turns'] for sample in read_samples(tmp_path / 'greedy')]
    assert all(own == others for own, others in zip(turns[::3], turns[1::3], strict=False)) and greedy != results


@pytest.mark.extended
def test_pictures_of_episodes_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', ROWS)
    settings = given(tmp_path, environment_kwargs='{shows: image}', model_max_length=512)
    results_of(command(tmp_path / 'out', tiny('qwen2_5_vl'), rows, **settings), IMAGE)
    sample = max(read_samples(tmp_path / 'out'), key=lambda one: one.response['episode']['turns'])
    shown = [part for turn in sample.conversation() for part in turn['content'] if part['type'] == 'image']
    assert [part['image'].size for part in shown] == [(56, 28 + 28 * turn) for turn in range(len(shown))]
    assert len(shown) == sample.response['episode']['turns'] > 1


def test_tasks_in_training_read_the_last_answer(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text(OWN)
    changes = {
        'eval_datasets': folder / 'held-out.jsonl',
        'eval_template': 'Instruction',
        'eval_strategy': 'steps',
        'eval_interval': 4,
        'max_steps': 4,
        'eval_tasks': f'[{tmp_path}/own.py:before]',
        'eval_temperature': 2,
        'per_device_eval_batch_size': 6,
        'ds_cfgs': 'ds_z0_config.json',
    }
    (ended,) = run(argv(folder, tmp_path / 'out', tiny('qwen2'), **changes), algorithm=find_run(TEXT.name, 'grpo')[1])
    assert ended.code == 0, ended.output
    (record,) = told(tmp_path / 'out')
    samples = read_samples(tmp_path / 'out' / 'eval_tasks' / '00000004')
    turns = [sample.response['episode']['turns'] for sample in samples]
    assert max(turns) > 1, [sample.response for sample in samples]
    assert record['eval/turns'] == pytest.approx(sum(turns) / len(turns))
    assert record['eval/before'] == pytest.approx(sum(2 * own - 1 for own in turns) / len(turns))
    assert 0 <= record['eval/success'] <= 1
    assert len(lines(tmp_path / 'out' / 'eval_tasks' / '00000004' / 'generations.jsonl')) == 6


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'credit': 'turn'}, 'evaluate trains nothing'),
        ({'on_limit': 'zero'}, 'evaluate trains nothing'),
        ({'environment': None, 'max_turns': 2, 'environment_kwargs': None}, 'it means nothing without environment'),
        ({'max_episode_tokens': 6}, 'holds no turn of model_cfgs.max_new_tokens = 6'),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', ROWS)
    with pytest.raises(SettingsError) as refused:
        evaluate(TEXT, command(tmp_path / 'out', Path('model'), rows, **given(tmp_path, **changes)))
    assert reason in str(refused.value)


def test_pairs_are_made_of_no_episodes(tmp_path: Path) -> None:
    settings = {key: value for key, value in given(tmp_path).items() if key != 'tasks'}
    rows = [
        '--model_name_or_path',
        'm',
        '--train_datasets',
        'd',
        '--output_dir',
        'o',
        '--make_pairs',
        'true',
        '--reward_functions',
        '[o.py:letters]',
    ]
    more = [part for key, value in settings.items() for part in (f'--{key}', str(value))]
    with pytest.raises(SettingsError, match='episodes are no rows of the template Preference'):
        settings_of(TEXT, find_run(TEXT.name, 'generate')[1], [*rows, *more], {})
    assert Evaluate.name == 'evaluate'


def test_models_that_act_are_evaluated_in_their_environment(tmp_path: Path) -> None:
    """What is done stands in the turns, and what came of it is measured."""
    model = worlds.small(tmp_path / 'model')
    rows = write_rows(tmp_path / 'rows.jsonl', [{'prompt': 'go to the left', 'limit': 2}] * 4)
    settings = {'eval_template': 'Prompts', 'environment': f'{worlds.__file__}:Line', 'max_turns': 8}
    settings |= {'max_new_tokens': None, 'model_max_length': None}
    argv = command(tmp_path / 'out', model, rows, **settings)
    results = results_of(argv, PAIRS['text_video_to_action'])
    responses = [sample.response for sample in read_samples(tmp_path / 'out')]
    done = [turn['content'][0] for response in responses for turn in response['turns'] if turn['role'] == 'assistant']
    assert len(done) > 4 and all(part['action'][0] in worlds.NAMES for part in done)
    # The end is too far, for the environment has got the limit of the row, a column that nobody asked for.
    assert results['metrics']['turns']['value'] == len(done) / 4 == 2 and results['metrics']['success']['value'] == 0
