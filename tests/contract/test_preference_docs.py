"""What docs/preference.md says is so: its rows, tables, settings and links, its commands and code on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.referring import Referring
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import RunCfgs
from align_anything.datasets.template_registry import get_template
from align_anything.testing.tiny.judges import build_judge
from tests.trainers.runs import lines, run
from tests.trainers.test_picked_pictures import picked, write_parquet

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'preference.md').read_text()
ALL_COMMANDS = {
    argv[2].removeprefix('align_anything.trainers.'): argv[3:]
    for block in re.findall(r'```bash\n(deepspeed --module .*?)```', TEXT, re.DOTALL)
    for argv in [shlex.split(block.replace('\\\n', ' '))]
}
COMMANDS = {name.rpartition('.')[2]: argv for name, argv in ALL_COMMANDS.items() if name.startswith('text_to_text.')}
CODE = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
ROWS = [json.loads(block) for block in re.findall(r'```json\n(.*)\n```', TEXT)]
SMALL = '--gradient_accumulation_steps 1 --per_device_train_batch_size 2 --save_total_limit 0 --log_type none'
CHOICE = '| | reference | choose it |'
# Those that learn from the rows of the first command too.
LIKE_IT = ('kto', 'orpo', 'simpo', 'cpo')


def table(head: str) -> list[list[str]]:
    """The cells of the table whose head begins so, without the head."""
    (body,) = re.findall(rf'^{re.escape(head)}.*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in body.splitlines()]


def names(cell: str) -> list[str]:
    return re.findall('`([^`]+)`', cell)


@pytest.fixture(scope='module')
def home(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name, the model under its name on the hub."""
    home = tmp_path_factory.mktemp('preference')
    other = {**ROWS[0], 'prompt': 'Name a bird.', 'chosen': 'A wren.'}
    for name in ('pairs', 'held_out_pairs'):
        (home / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in (ROWS[0], other) * 2))
    (home / 'Qwen').mkdir()
    (home / 'Qwen' / 'Qwen2.5-0.5B-Instruct').symlink_to(tiny('qwen2'))
    return home


def launched(algorithm: str, argv: list[str]) -> None:
    pair, kind = find_run('text_to_text', algorithm)
    (ended,) = run(argv, pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope='module')
def trained(home: Path) -> Path:
    """The folder after the commands that train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for algorithm in ('dpo', 'rm'):
            launched(algorithm, [*COMMANDS[algorithm], *SMALL.split(), '--epochs', '1', '--bf16', 'False'])
    return home


def test_the_commands_train_and_keep_the_best(trained: Path) -> None:
    assert list(COMMANDS) == ['dpo', 'rm', 'rm_score'] and len(ALL_COMMANDS) == 4
    found = {key.partition('/')[2] for record in lines(trained / 'output/dpo/metrics.jsonl') for key in record}
    assert {'loss', 'reward_accuracy', 'reward_margin', 'sft_loss'} <= found
    for name in ('dpo/slice_best', 'dpo/slice_end', 'rm/slice_end'):
        assert (trained / 'output' / name / 'model.safetensors').exists()


def test_a_trained_reward_model_is_used_as_the_code_does(trained: Path, at_home: Path) -> None:
    card = (at_home / 'output/rm/slice_end/README.md').read_text()
    numbers = json.loads((at_home / 'output/rm/slice_end/scores.json').read_text())
    last = [record for record in lines(at_home / 'output/rm/metrics.jsonl') if 'eval/chosen_reward' in record][-1]
    assert numbers['chosen_mean'] == last['eval/chosen_reward'] and f'{numbers["std"]:.3f}' in card
    for code in CODE:
        known: dict[str, Any] = {}
        exec(code, known)
        assert 'score' in known or known['model'].score.weight.shape[0] == 1
    launched('rm_score', [*COMMANDS['rm_score'], '--bf16', 'False'])
    first, *_ = lines(at_home / 'output/scores/scores.jsonl')
    # The row of the command is the pair of the code, whose chosen answer it scores.
    assert first['scores'][0] == pytest.approx(known['score'], abs=1e-5)
    assert first['source'].endswith('pairs.jsonl:1') and len(first['ranks']) == 2
    summary = json.loads((at_home / 'output/scores/summary.json').read_text())
    assert {'mean', 'quantiles', 'accuracy', 'calibration_error'} <= set(summary)


def test_the_command_for_pictures(at_home: Path) -> None:
    argv = ALL_COMMANDS['text_to_image.rm']
    model, data = (at_home / argv[argv.index(f'--{name}') + 1] for name in ('model_name_or_path', 'train_datasets'))
    build_judge('clip', model)
    data.mkdir(parents=True)
    write_parquet(data / 'train.parquet', picked(4, ties=1))
    pair, kind = find_run('text_to_image', 'rm')
    (ended,) = run([*argv, *SMALL.split(), '--bf16', 'False', '--dry_run'], pair=pair, algorithm=kind)
    assert ended.code == 0 and 'This was a dry run' in ended.output, ended.output


@pytest.mark.parametrize('algorithm', LIKE_IT)
def test_the_first_command_with_another_algorithm(algorithm: str, at_home: Path) -> None:
    launched(algorithm, [*COMMANDS['dpo'], '--dry_run'])


def test_rows_and_templates_of_the_first_table(tmp_path: Path) -> None:
    learned: dict[str, list[str]] = {}
    for _, algorithms, templates in table('| learns from |'):
        for algorithm in names(algorithms):
            learned[algorithm] = names(templates)
            hook = {'unpaired': 'format_supervised_sample'}.get(
                known_algorithms()[algorithm].task, 'format_preference_sample'
            )
            assert all(hook in get_template(name).hooks() for name in learned[algorithm]), algorithm
    assert learned.keys() == {name for row in table(CHOICE) for name in names(row[0])}
    assert len(ROWS) == 6
    for row in ROWS:
        template = 'Rated' if 'ratings' in row else 'Unpaired' if 'label' in row else 'Preference'
        formatter = get_template(template)()
        if template == 'Unpaired':
            _, meta = formatter.format_supervised_sample(row)
            assert meta['label'] is True
            continue
        better, worse, _ = formatter.format_preference_sample(row)
        assert (better[-1]['content'], worse[-1]['content']) == ('A trout.', 'A whale.')


def test_the_reference_column_and_the_metrics() -> None:
    batch = SimpleNamespace(
        num_responses=2,
        weights=torch.ones(2),
        segments=torch.tensor([0, 1]),
        metas=[{'desirable': [True, False]}],
    )
    metrics = {'loss'}
    for cell, reference, _ in table(CHOICE):
        kind = known_algorithms()[names(cell)[0]]
        assert (reference == 'yes') == issubclass(kind, Referring), cell
        metrics |= set(kind().counts(batch))
    explained = [name for row in table('| | reward |') for name in names(row[0])]
    assert sorted(explained) == sorted(name for row in table(CHOICE) for name in names(row[0]))
    assert {name for row in table('| metric |') for name in names(row[0])} == metrics


def test_settings_and_links_exist() -> None:
    known = {key for group in RunCfgs.model_fields.values() for key in group.annotation.model_fields}
    for kind in known_algorithms().values():
        known |= set(kind.model_fields)
    assert set(re.findall(r'--(\w+)', TEXT)) - {'module', 'help'} <= known
    for target in re.findall(r'\]\(([^)#]+)\)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target
