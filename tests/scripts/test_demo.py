"""`make demo` teaches digits, says how well, and fails when it does not."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from align_anything.datasets.template_registry import make_formatter
from tests.scripts.demos import ROOT, demonstrate, rehearse


@pytest.fixture(scope='module')
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location('digits', ROOT / 'scripts' / 'demo' / 'digits.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data_are_in_the_documented_form(digits: ModuleType, tmp_path: Path) -> None:
    # scikit-learn has 1797; those that are not held out are drawn four times: (1797 - 300) * 4
    assert digits.write_data(tmp_path) == (5988, 300)
    parts = {name: digits.read_rows(tmp_path / f'{name}.json') for name in ('train', 'held_out')}
    # images/0017-2.png is the third drawing of digit 17: none of a digit that is held out may be learned.
    learned, held_out = ({Path(row['image']).stem.split('-')[0] for row in rows} for rows in parts.values())
    assert len(learned) == 1497 and len(held_out) == 300 and not learned & held_out
    assert len({row['image'] for row in parts['train']}) == len(parts['train']) == 5988
    assert {digits.truth(row) for row in parts['held_out']} == set(digits.WORDS)
    row = parts['train'][0]
    conversation, meta = make_formatter('ShareGPT').format_supervised_sample(row)
    assert [turn['role'] for turn in conversation] == ['user', 'assistant']
    assert conversation[0]['content'].startswith('<image>\n') and conversation[1]['content'] == digits.truth(row)
    assert meta['image'] == row['image']
    with Image.open(tmp_path / row['image']) as picture:
        assert picture.size == (28, 28)


@pytest.mark.parametrize(('written', 'code'), [(0.89, 1), (0.9, 0)])
def test_too_few_right_answers_fail(
    digits: ModuleType,
    written: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / 'data').mkdir()
    Image.new('L', (28, 28)).save(tmp_path / 'data' / '0.png')
    turns = [{'from': 'human', 'value': '<image>\nWhich digit is this?'}, {'from': 'gpt', 'value': 'zero'}]
    (tmp_path / 'data' / 'held_out.json').write_text(json.dumps([{'image': '0.png', 'conversations': turns}]))
    (tmp_path / 'before.json').write_text(json.dumps({'picked': 0.1, 'written': 0.0}))
    (tmp_path / 'run').mkdir()
    steps = [{'step': 1, 'train/loss': 2.0, 'eval/loss': 2.1}, {'step': 2, 'train/loss': 1.0, 'eval/loss': 1.1}]
    (tmp_path / 'run' / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, steps)))
    monkeypatch.setattr(digits, 'measure', lambda *_: ({'picked': 0.95, 'written': written}, ['zero']))
    assert digits.check(tmp_path) == code
    assert ('FAILED: 89.0% is below 90%' in capsys.readouterr().out) == bool(code)
    with Image.open(tmp_path / 'digits.png') as plot:
        assert plot.format == 'PNG' and min(plot.size) > 500


def check_what_is_left(home: Path, done: subprocess.CompletedProcess[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Asserts that all was written; returns the results before and after."""
    before, after = (json.loads((home / f'{name}.json').read_text()) for name in ('before', 'after'))
    # Ten words to choose from, none of them known: a tenth is right by chance, and nothing is written rightly.
    assert before['picked'] < 0.25 and before['written'] < 0.05
    assert f'{after["written"]:>6.1%}' in done.stdout and re.search(r'> .+\n  .*\n', done.stdout)
    for name in ('digits.png', 'run/metrics.png', 'run/slice_end/model.safetensors'):
        assert (home / name).stat().st_size > 1000
    return before, after


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_demo_of_a_few_steps_runs_through_and_says_that_they_are_too_few(tmp_path: Path) -> None:
    """All that a person calls, but for most of the training, which is under the real launcher."""
    done = rehearse('demo', tmp_path / 'demo', steps=40)
    before, after = check_what_is_left(tmp_path / 'demo', done)
    assert done.returncode == 1 and f'FAILED: {after["written"]:.1%} is below 90%' in done.stdout
    # By now it writes words, and rather the right ones than chance has it.
    assert after['written'] < 0.9 and after['picked'] > before['picked']


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_the_demo_passes_under_the_real_launcher(tmp_path: Path) -> None:
    """On one rank; tests/trainers/test_launcher.py does so on two."""
    # Two thirds of what it takes when a person calls it.
    done = demonstrate('demo', tmp_path / 'demo', EPOCHS='2')
    assert done.returncode == 0, done.stdout + done.stderr
    _, after = check_what_is_left(tmp_path / 'demo', done)
    assert after['picked'] >= 0.9 and after['written'] >= 0.9
    assert re.search(r'> .+\n  (\w+)\n', done.stdout)
