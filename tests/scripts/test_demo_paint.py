"""`make demo-paint` teaches shapes to be painted, shows them, and fails when too few have their colours."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from align_anything.rewards.base import Completion
from align_anything.testing.shapes import COLOURS, NAMED, PLAIN, draw_shape
from scripts.demo_paint import painting
from tests.scripts.demos import demonstrate


def test_the_reward_is_for_the_colour_that_the_row_wants() -> None:
    random = np.random.default_rng(0)
    for row in painting.prompts():
        shape = row['prompt'].split()[-1]
        made = [completion(draw_shape(colour, shape, random), row) for colour in COLOURS]
        assert painting.painted_as_wanted(made) == [float(colour == row['wanted']) for colour in COLOURS]
    asked = [row['prompt'] for row in painting.prompts()]
    assert {*asked} == {*NAMED, *PLAIN} and sum(prompt in PLAIN for prompt in asked) == len(asked) / 2


def completion(picture: object, row: dict[str, str]) -> Completion:
    message = {'role': 'assistant', 'content': [{'type': 'image', 'image': picture}]}
    return Completion([], message, row, 1, True, 'prompts.jsonl:1')


@pytest.mark.parametrize(('named', 'plain', 'code'), [(0.75, 0.75, 0), (0.7, 1.0, 1), (1.0, 0.7, 1)])
def test_too_few_right_colours_fail(
    named: float,
    plain: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(painting, 'ASKED', 20)
    random, share = np.random.default_rng(0), {**dict.fromkeys(NAMED, named), **dict.fromkeys(PLAIN, plain)}
    made = {
        prompt: [(draw_shape('blue', prompt.split()[-1], random), number < 20 * right) for number in range(20)]
        for prompt, right in share.items()
    }
    monkeypatch.setattr(painting, 'paint', lambda folder, stage: made)
    assert painting.check(tmp_path) == code
    said = capsys.readouterr().out
    assert ('which is below 75%' in said) == bool(code) and f'{(named + plain) / 2:.2f}' in said
    shares = json.loads((tmp_path / 'painted.json').read_text())
    figures = {'named': named, 'plain': plain, 'reward': (named + plain) / 2, 'shape': 1}
    assert list(shares.values()) == [pytest.approx(figures)] * 3
    page = (tmp_path / 'painted.html').read_text()
    assert page.count('src="data:image/') == len(share) * painting.SHOWN * 3
    assert all(words in page and words in said for words in painting.STAGES.values())
    # Of what is shown, the first of those asked for, all is right.
    assert page.count('class="right"') == len(share) * painting.SHOWN * 3 and 'class="wrong"' not in page


def painted_by(home: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, float]]]:
    """Calls the demo; returns what it left on record beside what it said."""
    done = demonstrate('demo_paint', home, **settings)
    assert (home / 'painted.json').exists(), done.stdout + done.stderr
    assert re.search('class="(right|wrong)"', (home / 'painted.html').read_text())
    return done, json.loads((home / 'painted.json').read_text())


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(900)
def test_a_demo_of_a_few_steps_runs_through_and_says_that_they_are_too_few(tmp_path: Path) -> None:
    done, shares = painted_by(tmp_path / 'demo', STEPS='12', REWARDED_STEPS='2')
    assert done.returncode == 1 and 'which is below 75%' in done.stdout
    assert all(own['named'] < 0.6 for own in shares.values())


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_the_demo_passes_under_the_real_launcher(tmp_path: Path) -> None:
    done, shares = painted_by(tmp_path / 'demo')
    assert done.returncode == 0, done.stdout + done.stderr
    untrained, supervised, rewarded = shares.values()
    assert untrained['named'] < 0.5 < supervised['named'] and supervised['plain'] < 0.5
    assert rewarded['reward'] > supervised['reward'] > untrained['reward'] and rewarded['shape'] > 0.5
