"""The script of projects/safe_rlhf_v does what its README says: at a small size all of it, else what it would do."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from align_anything.algorithms.generate import Generate
from align_anything.core.errors import SettingsError
from align_anything.datasets.template_registry import make_formatter
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.harness.notebooks import in_a_process
from tests.trainers.runs import lines

PROJECT = Path(__file__).resolve().parents[2] / 'projects' / 'safe_rlhf_v'
README = (PROJECT / 'README.md').read_text()
COMMANDS = [shlex.split(block.replace('\\\n', ' ')) for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL)]
REAL = ['--model_name_or_path', 'a/model', '--train_datasets', 'some/pairs']


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(PROJECT)
    yield __import__('safe_rlhf_v')
    for name in ('safe_rlhf_v', 'bottles'):
        sys.modules.pop(name, None)


def test_the_commands_of_the_readme_are_ones_that_it_takes(script: ModuleType) -> None:
    made, *real, generate = COMMANDS
    for words in (made, *real):
        assert words[0] in ('python', 'deepspeed') and words[1] == 'projects/safe_rlhf_v/safe_rlhf_v.py'
        stages = script.settings_of_stages(script.parse(words[2:]))
        script.check(stages)
        assert [*stages] == ['sft', 'rm', 'cost_model', 'saferlhf'][words is not made :]
    assert stages['rm']['use_lora'] is True and stages['saferlhf']['lambda_init'] == 10
    assert stages['saferlhf']['cost_model_name_or_path'] == Path('output/beaver_v/cost_model/slice_end')
    assert generate[:3] == ['align-anything', 'generate', 'text_image_to_text']
    settings_of(PAIRS['text_image_to_text'], Generate, generate[3:], {})
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (PROJECT / target).exists(), target


def test_answers_to_learn_first_are_a_stage_before_the_others(script: ModuleType) -> None:
    stages = script.settings_of_stages(script.parse([*REAL, '--sft_datasets', 'answers.jsonl', '--output_dir', 'out']))
    assert stages['sft']['model'] == 'a/model'
    assert {stages[name]['model'] for name in ('rm', 'cost_model', 'saferlhf')} == {Path('out/sft/slice_end')}


def test_what_is_wrong_with_any_stage_is_said_before_the_first(script: ModuleType) -> None:
    argv = [*REAL, '--rm.lerning_rate', '1e-5', '--saferlhf.treshold', '0']
    with pytest.raises(SettingsError) as found:
        script.check(script.settings_of_stages(script.parse(argv)))
    assert len(found.value.problems) == 2 and "'threshold'" in str(found.value)
    with pytest.raises(SettingsError, match='no --sft_datasets'):
        script.settings_of_stages(script.parse([*REAL, '--sft.epochs', '1']))


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--train_datasets', 'rows.jsonl'], 'no --model_name_or_path'),
        (['--model_name_or_path', 'a/model'], '--train_datasets is missing'),
        ([*REAL, '--ppo.epochs', '1'], 'STAGE is one of'),
        ([*REAL, '--rm.epochs'], '--STAGE.KEY VALUE'),
    ],
)
def test_options_that_say_nothing_are_refused(
    script: ModuleType, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.parse(argv)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_labels_of_bottles_are_those_of_the_templates(script: ModuleType) -> None:
    rows = [script.bottles.preferences({'image': 'x', 'question': 'y'}, 'red', number)[0] for number in (0, 1)]
    assert {row['more_helpful_response_id'] for row in rows} == {1, 2}
    assert rows[0].keys() == {
        *('image', 'question', 'response_1', 'response_2', 'more_helpful_response_id', 'safer_response_id'),
        *('response_1_harmless_rate', 'response_2_harmless_rate'),
    }
    reward, cost = (make_formatter(f'SafeRLHF_V_{name}') for name in ('Reward', 'Cost'))
    for template, unsafe in ((reward, None), (cost, (False, True))):
        for row in rows:
            better, _, meta = template.format_preference_sample(row)
            assert better[-1]['content'] == 'red yes'
            assert unsafe is None or (meta['is_better_safe'], meta['is_worse_safe']) == unsafe
    blue, *others = script.bottles.preferences({'image': 'x', 'question': 'y'}, 'blue', 0)
    _, worse, meta = cost.format_preference_sample(blue)
    assert worse[-1]['content'] == 'blue yes' and meta['is_better_safe'] and meta['is_worse_safe']
    chosen = [reward.format_preference_sample(row)[0][-1]['content'] for row in others]
    assert chosen == ['blue yes', 'blue no'], 'any answer helps more than none'


def test_the_table_has_means_of_parts(script: ModuleType) -> None:
    metrics = [
        {'step': step, 'train/reward': 1.0, 'train/reward/cost': -step, 'train/multiplier': 2.0} for step in range(1, 5)
    ]
    found = script.table([*metrics, {'step': 4, 'eval/reward': 0.0}], rows=2).split('\n')
    assert [line.split() for line in found if line] == [
        ['steps', 'reward', 'cost', 'multiplier'],
        ['1-2', '1.00', '-1.50', '2.00'],
        ['3-4', '1.00', '-3.50', '2.00'],
    ]


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_model_becomes_helpful_within_the_limit(
    script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def body() -> dict[str, Any]:
        assert script.main(['--output_dir', str(tmp_path)]) == 0
        return {name: script.bottles.drinks(tmp_path / name / 'slice_end') for name in ('sft', 'saferlhf')}

    drinks = in_a_process(body)
    told = capfd.readouterr().out
    assert re.search(r'steps +reward +cost +multiplier', told) and 'red bottles' in told
    before, after = drinks['sft'], drinks['saferlhf']
    assert min(before.values()) > 0.25 and max(before.values()) < 0.75, before
    assert after['red'] < 0.25 and after['blue'] > 0.5, after
    steps = [record for record in lines(tmp_path / 'saferlhf' / 'metrics.jsonl') if 'train/reward/cost' in record]
    first, last = ({name: fmean(record[name] for record in part) for name in script.COLUMNS.values()}
                   for part in (steps[:5], steps[-5:]))  # fmt: skip
    assert last['train/reward/cost'] < first['train/reward/cost'] - 0.4 and last['train/reward'] > first['train/reward']
    assert last['train/multiplier'] > 1.3 * first['train/multiplier'], 'the cost was above the limit'
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/slice_end/*')}

    def again() -> int:
        return script.main(['--output_dir', str(tmp_path)])

    assert in_a_process(again) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/slice_end/*')} == made
    with Image.open(tmp_path / 'made' / 'pictures' / '0.png') as picture:
        assert picture.size == (56, 56)
    assert len(json.loads((tmp_path / 'made' / 'pairs.jsonl').read_text().splitlines()[0])) == 8
