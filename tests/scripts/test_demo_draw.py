"""`make demo-draw` teaches digits to be drawn, shows them, and fails when too few are right."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from align_anything.rewards.base import Completion
from align_anything.testing.emitting import digits, read_digits
from scripts.demo_draw import drawing
from tests.scripts.demos import demonstrate


def test_the_reward_and_the_judge_know_digits_that_they_never_saw() -> None:
    pictures, labels = digits()
    for half in (0, 1):
        found = read_digits(pictures[1 - half :: 2], half).argmax(1)
        assert (found == labels[1 - half :: 2]).mean() > 0.9


def test_the_reward_is_how_probable_the_digit_asked_for_is() -> None:
    pictures, labels = (part[0:40:2] for part in digits())  # of the half that the classifier learned
    rewards = [drawing.drawn_digit([completion(picture, digit) for digit in range(10)]) for picture in pictures]
    assert [sum(row) for row in rewards] == pytest.approx([1] * len(rewards))
    assert [row.index(max(row)) for row in rewards] == labels


def completion(picture: Image.Image, digit: int) -> Completion:
    message = {'role': 'assistant', 'content': [{'type': 'image', 'image': picture}]}
    return Completion([], message, {'digit': digit}, 16, True, 'rows.jsonl:1')


@pytest.mark.parametrize(('right', 'code'), [(0.79, 1), (0.8, 0)])
def test_too_few_right_pictures_fail(
    right: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 10 * drawing.ASKED
    drawn = [(Image.new('RGB', (8, 8), (number % 256, 0, 0)), number < right * count) for number in range(count)]
    monkeypatch.setattr(drawing, 'draw', lambda model: drawn)
    monkeypatch.setattr(drawing, 'parameters', lambda model: 12345)
    assert drawing.check(tmp_path) == code
    assert ('FAILED: 79.0% is below 80%' in capsys.readouterr().out) == bool(code)
    shares = json.loads((tmp_path / 'drawn.json').read_text())
    assert list(shares.values()) == [pytest.approx(right)] * 3
    page = (tmp_path / 'drawn.html').read_text()
    assert '12,345' in page and page.count('src="data:image/') == 10 * drawing.SHOWN * 3
    # The digits at the beginning are right, those at the end are not.
    assert page.count('class="right"') + page.count('class="wrong"') == 10 * drawing.SHOWN * 3
    first, last = (re.search(rf'<th>{word}</th>(.*)', page)[1] for word in ('zero', 'nine'))
    assert 'class="wrong"' not in first and 'class="right"' not in last


def drawn_by(home: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Calls the demo; returns what it left on record beside what it said."""
    done = demonstrate('demo_draw', home, **settings)
    assert (home / 'drawn.json').exists(), done.stdout + done.stderr
    assert 'src="data:image/' in (home / 'drawn.html').read_text()
    return done, json.loads((home / 'drawn.json').read_text())


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(900)
def test_a_demo_of_a_few_steps_runs_through_and_says_that_they_are_too_few(tmp_path: Path) -> None:
    done, shares = drawn_by(tmp_path / 'demo', STEPS='12', REWARDED_STEPS='2')
    assert done.returncode == 1 and f'FAILED: {shares["rewarded/slice_end"]:.1%} is below 80%' in done.stdout
    assert all(share < 0.3 for share in shares.values())


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_the_demo_passes_under_the_real_launcher(tmp_path: Path) -> None:
    done, shares = drawn_by(tmp_path / 'demo')
    assert done.returncode == 0, done.stdout + done.stderr
    untrained, supervised, rewarded = shares.values()
    assert untrained < 0.2 and untrained < supervised < rewarded and rewarded >= 0.8
