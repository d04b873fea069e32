"""A whole evaluation on tiny models: what it writes, that it goes on, what it refuses before a model loads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.algorithms.evaluate import Evaluate
from align_anything.cli.main import main
from align_anything.core.errors import DataError, SettingsError
from align_anything.evaluation import run as module
from align_anything.evaluation.run import evaluate as evaluated
from align_anything.evaluation.run import shown
from align_anything.testing.tiny.judges import build_judge
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS, Pair
from tests.harness.ranks import run_ranks
from tests.metrics.common import folder_of
from tests.trainers.runs import IMAGE, TEXT, lines, write_rows

Tiny = Callable[..., Path]
ROWS = [{'prompt': f'{n} {"sun " * n}', 'answer': 'sea', 'kind': n % 2} for n in range(5)]


def command(out: Path, model: Path, rows: Path | None, **settings: Any) -> list[str]:
    """The command line of an evaluation, in float32."""
    values = {
        'model_name_or_path': model, 'eval_datasets': rows, 'output_dir': out, 'bf16': False, 'num_workers': 0,
        'model_max_length': 256, 'max_new_tokens': 6, 'bootstrap_samples': 100, **settings,
    }  # fmt: skip
    given = {key: value for key, value in values.items() if value is not None}
    return [part for key, value in given.items() for part in (f'--{key}', str(value))]


def evaluate(pair: Pair, argv: list[str]) -> dict[str, Any] | None:
    return evaluated(pair, settings_of(pair, Evaluate, argv, {}))


def results_of(argv: list[str], pair: Pair = TEXT) -> dict[str, Any]:
    found = evaluate(pair, argv)
    assert found is not None
    return found


def test_text_is_answered_measured_and_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = write_rows(tmp_path / 'rows.jsonl', ROWS), tmp_path / 'out'
    (tmp_path / 'own.py').write_text('def letters(completions):\n    return [len(c.response) for c in completions]\n')
    own = f'{tmp_path}/own.py:letters'
    argv = command(out, tiny('qwen2'), rows, tasks=f'[exact_match, wer, {own}]', num_generations=2, temperature=1)
    results = results_of(argv)
    assert results == json.loads((out / 'results.json').read_text())
    assert (results['prompts'], results['responses']) == (5, 10) and list(results['metrics']) == [
        'exact_match', 'wer', 'letters',
    ]  # fmt: skip
    samples = lines(out / 'samples.jsonl')
    letters = [len(sample['text']) for sample in samples]
    assert [sample['metrics']['letters'] for sample in samples] == letters
    found = results['metrics']['letters']
    assert found['value'] == pytest.approx(sum(letters) / 10) and found['responses'] == 10
    assert found['interval'][0] <= found['value'] <= found['interval'][1]
    assert results['metrics']['wer']['better'] == 'lower' and results['metrics']['wer']['details'] == {'words': 10}
    page = (out / 'results.html').read_text()
    assert 'exact_match' in page and '<script' not in page and 'sun sun' in page

    # The answers are there: other tasks need no model, and the command shows a table.
    monkeypatch.setattr(module, 'generate', lambda *_: None)
    again = [*argv, '--resume', 'auto', '--tasks', '[exact_match, cer]']
    del again[again.index('--tasks') : again.index('--tasks') + 2]
    with pytest.raises(SystemExit) as ended:
        main(['evaluate', 'text_to_text', *again])
    assert ended.value.code == 0
    assert 'exact_match' in capsys.readouterr().out
    assert lines(out / 'samples.jsonl')[0]['metrics'].keys() == {'exact_match', 'cer'}


def test_ranks_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / 'rows.jsonl', ROWS), tiny('qwen2')
    more = {'tasks': '[wer]', 'temperature': 1, 'per_device_prompt_batch_size': 1}
    one = results_of(command(tmp_path / 'one', model, rows, **more))
    two = run_ranks(lambda rank: evaluate(TEXT, command(tmp_path / 'two', model, rows, **more)))
    assert two == [one, None]
    for name in ('samples.jsonl', 'results.html'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def test_answers_are_kept_when_a_task_cannot_be_done(tiny: Tiny, tmp_path: Path) -> None:
    rows, out = (
        write_rows(tmp_path / 'rows.jsonl', [{'prompt': 'sun', 'answer': 'sea'}, {'prompt': 'sea'}]),
        tmp_path / 'out',
    )
    with pytest.raises(DataError, match='has no reference answer'):
        evaluate(TEXT, command(out, tiny('qwen2'), rows, tasks='[exact_match]'))
    before = (out / 'generations.jsonl').read_bytes()
    own = f'[{tmp_path}/own.py:letters]'
    (tmp_path / 'own.py').write_text('def letters(completions):\n    return [len(c.response) for c in completions]\n')
    results = results_of(command(out, tiny('qwen2'), rows, tasks=own, resume='auto'))
    assert results['metrics']['letters']['responses'] == 2
    assert (out / 'generations.jsonl').read_bytes() == before


def test_two_checkpoints_are_compared_over_the_same_prompts(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', ROWS)
    (tmp_path / 'own.py').write_text('def letters(completions):\n    return [len(c.response) for c in completions]\n')
    rewards = {'reward_functions': f'[{tmp_path}/own.py:letters]'}
    results_of(command(tmp_path / 'a', tiny('qwen2'), rows, **rewards))
    argv = command(tmp_path / 'b', tiny('llama'), rows, tasks='[win_rate]', compare_with=tmp_path / 'a', **rewards)
    results = results_of(argv)
    ours, theirs = ([len(line['responses'][0]['text']) for line in lines(tmp_path / name / 'generations.jsonl')]
                    for name in 'ba')  # fmt: skip
    wins = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in zip(ours, theirs, strict=True)]
    assert results['metrics']['win_rate']['value'] == pytest.approx(sum(wins) / 5)
    compared = results['comparison']['metrics']['reward/letters']
    assert compared['difference'] == pytest.approx((sum(ours) - sum(theirs)) / 5) and compared['prompts'] == 5
    assert len(shown(results)) == 2 and 'other: ' in (tmp_path / 'b' / 'results.html').read_text()
    with pytest.raises(SettingsError, match='compares scores of the same rewards'):
        evaluate(TEXT, [*argv, '--reward_model_name_or_path', str(tmp_path / 'other')])


def test_pictures_are_read_and_vqa_takes_the_answers_of_people(tiny: Tiny, tmp_path: Path) -> None:
    Image.new('RGB', (20, 30), (80, 0, 0)).save(tmp_path / '0.png')
    rows = [{'question': 'What?', 'image': '0.png', 'answers': ['a', 'b', 'a', 'a']}] * 2
    file = write_rows(tmp_path / 'rows.jsonl', rows)
    argv = command(tmp_path / 'out', tiny('llava'), file, tasks='[vqa]', eval_template='OK-VQA', image_folder=tmp_path)
    results = results_of(argv, IMAGE)
    assert results['metrics']['vqa']['responses'] == 2
    assert '<img' in (tmp_path / 'out' / 'results.html').read_text()


@pytest.mark.extended
def test_pictures_are_made_and_measured(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{'prompt': f'a red circle {n}', 'objects': [{'colour': 'red', 'shape': 'circle'}]} for n in range(3)]
    file = write_rows(tmp_path / 'rows.jsonl', rows)
    real = tmp_path / 'real'
    real.mkdir()
    for number in range(4):
        Image.new('RGB', (32, 32), (60 * number, 0, 90)).save(real / f'{number}.png')
    clip = build_judge('clip', tmp_path / 'clip')
    kwargs = {name: {'encoder': str(clip), 'reference': str(real)} for name in ('fid', 'kid')}
    kwargs['clip_score'] = {'model': str(clip)}
    argv = command(
        tmp_path / 'out', tiny('sd3'), file, tasks='[fid, kid, clip_score, shapes]', task_kwargs=json.dumps(kwargs),
        eval_template='Prompts', eval_template_kwargs='{keep_columns: true}', max_new_tokens=None,
        model_max_length=None, rollout_steps=2,
    )  # fmt: skip
    results = results_of(argv, PAIRS['text_to_image'])
    assert results['metrics']['fid']['value'] > 0 and results['metrics']['fid']['details']['generated'] == 3
    assert results['metrics']['clip_score']['interval'] is not None
    assert results['metrics']['shapes']['value'] == 0.0


NEEDED = {'model_name_or_path': 'm', 'eval_datasets': 'd', 'output_dir': 'o', 'train_template': None}


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({}, 'name what to measure'),
        ({'tasks': '[exact_mach]'}, "Did you mean 'exact_match'?"),
        ({'tasks': '[win_rate]'}, 'compares two checkpoints'),
        ({'tasks': '[fid]', 'task_kwargs': '{fid: {encoder: m, reference: r}}'}, 'answers of the pair text_to_text'),
        ({'tasks': '[vqa]', 'task_kwargs': '{wer: {plain: false}}'}, "'wer' is not among the tasks"),
        ({'tasks': '[vqa]', 'make_pairs': True}, 'evaluate trains nothing and does not read it'),
        ({'tasks': '[vqa]', 'bootstrap_samples': 3}, 'greater than or equal to 100'),
        ({'tasks': '[vqa]', 'eval_datasets': None}, 'name the training data'),
        ({'tasks': '[vqa]', 'train_datasets': 'x'}, 'was given already'),
        ({'tasks': '[vqa]', 'learning_rate': 1}, 'evaluate trains nothing and does not read it'),
        ({'tasks': '[vqa]', 'dry_run': '80GiB'}, '--dry_run: evaluate trains nothing whose memory it would tell'),
        ({'task_kwargs': '{vqa: {column: a}}'}, 'it means nothing without tasks'),
        ({'tasks': '[lm_eval:x]', 'eval_datasets': None, 'output_dir': None}, 'output_dir'),
    ],
)
def test_what_is_refused_before_a_model_loads(given: dict[str, Any], words: str) -> None:
    argv = [part for key, value in {**NEEDED, **given}.items() if value is not None
            for part in (f'--{key}', str(value))]  # fmt: skip
    with pytest.raises(SettingsError, match=re.escape(words)):
        evaluate(TEXT, argv)


def test_rows_without_golden_answers_are_told_before_anything_is_generated(tiny: Tiny, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / 'rows.jsonl', [{'prompt': 'sun'}]), tmp_path / 'out'
    with pytest.raises(DataError, match='rows.jsonl:1 has no reference answer'):
        evaluate(TEXT, command(out, tiny('qwen2'), rows, tasks='[repetition, cer]'))
    assert not out.exists()


def test_a_folder_to_compare_with_that_is_none(tmp_path: Path) -> None:
    argv = command(tmp_path / 'out', tmp_path, tmp_path, tasks='[wer]', compare_with=tmp_path)
    with pytest.raises(DataError, match='has no generations.jsonl'):
        evaluate(TEXT, argv)
    folder_of(tmp_path, [])
