"""Tasks of lm-evaluation-harness: what its numbers become; with it installed, a task that this test writes."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.errors import SettingsError
from align_anything.evaluation.harness import checked_options, results_of
from tests.evaluation.test_run import evaluate
from tests.trainers.runs import TEXT

TOLD = {
    'results': {
        'own': {
            'alias': 'own', 'acc,none': 0.25, 'acc_stderr,none': 0.1, 'perplexity,none': 3.0,
            'perplexity_stderr,none': 'N/A', 'exact_match,strict': 0.5, 'exact_match_stderr,strict': 0.0,
        }
    },
    'n-samples': {'own': {'original': 9, 'effective': 8}},
}  # fmt: skip
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["2", "3"]
doc_to_target: right
metric_list: [{{metric: acc}}]
"""


def test_its_numbers_are_told_as_ours() -> None:
    found = results_of(TOLD)
    assert found.keys() == {'lm_eval:own/acc', 'lm_eval:own/perplexity', 'lm_eval:own/exact_match/strict'}
    accuracy = found['lm_eval:own/acc']
    assert accuracy['value'] == 0.25 and accuracy['responses'] == 8 and accuracy['better'] == 'higher'
    assert accuracy['interval'] == pytest.approx([0.25 - 0.196, 0.25 + 0.196], abs=1e-4)
    assert found['lm_eval:own/perplexity']['better'] == 'lower'
    assert found['lm_eval:own/perplexity']['interval'] is None


def test_options_are_checked() -> None:
    assert checked_options('own', {'num_fewshot': 2}).num_fewshot == 2
    with pytest.raises(SettingsError, match=re.escape("'fewshot' of lm_eval:own")):
        checked_options('own', {'fewshot': 2})


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    argv = ['--model_name_or_path', 'm', '--output_dir', str(tmp_path), '--tasks', '[lm_eval:sums]']
    with pytest.raises(SettingsError, match=re.escape("pip install 'align-anything[eval]'")):
        evaluate(TEXT, argv)


@pytest.mark.extended
def test_a_task_of_ones_own(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / 'rows.jsonl'
    rows.write_text(''.join(json.dumps({'question': f'{n} and 1', 'right': n % 2}) + '\n' for n in range(4)))
    (tmp_path / 'tasks').mkdir()
    (tmp_path / 'tasks' / 'sums.yaml').write_text(TASK.format(file=rows))
    out = tmp_path / 'out'
    kwargs = json.dumps({'lm_eval:sums': {'include_path': str(tmp_path / 'tasks')}})
    argv = ['--model_name_or_path', str(tiny('qwen2')), '--output_dir', str(out), '--tasks', '[lm_eval:sums]',
            '--task_kwargs', kwargs, '--bf16', 'False', '--model_max_length', '128']  # fmt: skip
    results = evaluate(TEXT, argv)
    argv[argv.index('[lm_eval:sums]')], argv[argv.index(kwargs)] = '[lm_eval:sum]', kwargs.replace('sums"', 'sum"')
    with pytest.raises(SettingsError, match="has no task 'sum'"):
        evaluate(TEXT, argv)
    assert results is not None and 0 <= results['metrics']['lm_eval:sums/acc']['value'] <= 1
    assert json.loads((out / 'results.json').read_text()) == results
