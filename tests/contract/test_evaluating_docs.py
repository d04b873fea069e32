"""What docs/evaluating.md says is so: its commands run one after the other on tiny models, its tables are whole."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.algorithms.evaluate import Evaluate
from align_anything.algorithms.sft import SFT
from align_anything.configs.schema import build_run_schema, groups_of
from align_anything.evaluation.run import evaluate
from align_anything.metrics.base import METRICS, make_metrics
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS, find_pair
from align_anything.trainers.runs.eval_tasks import metrics_of
from tests.metrics.common import samples_of
from tests.trainers.runs import lines, write_rows

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'evaluating.md').read_text()
COMMANDS = [shlex.split(block.replace('\\\n', ' ')) for block in re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)]
SHORT = {'64': '6', '16': '6'}


@pytest.fixture(scope='module')
def home(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp('evaluating-docs')
    write_rows(home / 'questions.jsonl', [{'prompt': f'What is {n} + 3?', 'answer': str(n + 3)} for n in range(3)])
    write_rows(home / 'vqa.jsonl', [{'question': 'What?', 'image': 'x.png', 'answers': ['a', 'b', 'a', 'a']}])
    for folder in ('pictures', 'Qwen', 'llava-hf', 'output'):
        (home / folder).mkdir()
    Image.new('RGB', (20, 30), 'red').save(home / 'pictures' / 'x.png')
    for name, family in (('Qwen/Qwen2.5-0.5B-Instruct', 'qwen2'), ('llava-hf/llava-1.5-7b-hf', 'llava')):
        (home / name).symlink_to(tiny(family))
    (home / 'output' / 'trained').symlink_to(tiny('llama'))
    return home


def test_the_commands_run_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert len(COMMANDS) == 3
    for words in COMMANDS:
        assert words[:2] == ['align-anything', 'evaluate']
        argv = [SHORT.get(word, word) for word in words[3:]]
        pair = find_pair(words[2])
        assert evaluate(pair, settings_of(pair, Evaluate, [*argv, '--bf16', 'False', '--num_workers', '0'], {}))
    results = json.loads((home / 'output' / 'after' / 'results.json').read_text())
    assert results['metrics'].keys() == results['comparison']['metrics'].keys() == {'exact_match', 'cer'}
    assert {'value', 'interval', 'responses', 'better'} <= results['metrics']['cer'].keys()
    assert {'other', 'difference', 'interval'} <= results['comparison']['metrics']['cer'].keys()
    assert len(lines(home / 'output' / 'after' / 'samples.jsonl')) == 3
    named = {
        name for cell in re.findall(r'^\| (`\w+\.\w+`.*?) \|', TEXT, re.MULTILINE) for name in cell.split('`')[1::2]
    }
    assert {name for name in named if '.' in name} - {'text_to_text.rm_score', 'eval_data_with_score.json'} <= {
        path.name for path in (home / 'output' / 'after').iterdir()
    }


def test_the_task_of_ones_own_is_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (code,) = re.findall(r'```python\n(# my_tasks\.py\n.*?)```', TEXT, re.DOTALL)
    (home / 'my_tasks.py').write_text(code)
    (metric,) = make_metrics(['my_tasks.py:length_ratio'], {})
    rows = ({'says': ['four'], 'answer': 'to'}, {'says': [''], 'answer': 'eight is'})
    found = metric.measure(samples_of(home / 'own', *rows))
    assert metric.name == 'length_ratio' and metric.traits.lower_is_better
    assert (found.values, found.counts, found.details) == ([4.0, 0.0], [2.0, 8.0], {'empty': 1})


def test_the_settings_of_a_training_are_some(tmp_path: Path) -> None:
    (block,) = re.findall(r'```yaml\n(.*?)```', TEXT, re.DOTALL)
    (tmp_path / 'run.yaml').write_text(block)
    argv = f'--config {tmp_path}/run.yaml --model_name_or_path m --output_dir o --train_datasets d --train_template t'
    cfgs = settings_of(PAIRS['text_to_text'], SFT, argv.split(), {}).cfgs
    assert [metric.name for metric in metrics_of(cfgs, PAIRS['text_to_text'])] == cfgs.train_cfgs.eval_tasks


def test_tables_are_whole() -> None:
    (options,) = re.findall(r'^\| task \| options .*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    listed: dict[str, str] = {}
    for line in options.splitlines():
        names, told = line.strip('|').split('|')[:2]
        listed |= dict.fromkeys(re.findall(r'`(\w+)`', names), told)
    shipped = {name for name in METRICS.names() if METRICS.get(name).__module__.startswith('align_anything.')}
    assert listed.keys() == shipped
    for name, told in listed.items():
        parameters = inspect.signature(METRICS.get(name)).parameters.values()
        own = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        said = {*re.findall(r'`(\w+)`', told)} - {'answers', 'objects', 'OPENAI_API_KEY'}
        assert said == own or ('those' in told and said < own), name
    groups = groups_of(build_run_schema(Evaluate)).values()
    (table,) = re.findall(r'^\| setting of .*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    for line in table.splitlines():
        name, default = [cell.strip('` ') for cell in line.strip('|').split('|')][:2]
        field = next(group.model_fields[name] for group in groups if name in group.model_fields)
        assert {None: 'null'}.get(None if field.default is None else 0, str(field.default)) == default
    known = {key for group in groups for key in group.model_fields}
    assert {*re.findall(r'--(\w+)', TEXT)} - {'nproc_per_node', 'resume'} <= known
    for target in re.findall(r'\]\(([^)#:]+)(?:#[\w-]+)?\)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target
