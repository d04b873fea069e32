"""`make demo-robot` teaches a robot to be careful, shows it, and fails when it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.types import Episode, Piece, Turn
from align_anything.testing import played
from scripts.demo_robot import robot
from tests.scripts.demos import demonstrate


def episode(steps: int, success: bool, cost: float) -> Episode:
    """One that was played, each step seen in a colour of its own."""

    def shown(step: int) -> dict[str, Any]:
        picture = Image.new('RGB', (14, 14), (step * 20, 0, 0))
        return {'role': 'user', 'content': [{'type': 'image', 'image': picture}]}

    done = {'role': 'assistant', 'content': [{'type': 'action', 'action': Actions(names=('left',))}]}
    messages = [message for step in range(1, steps + 1) for message in (done, shown(step))][:-1]
    infos = [{'success': success} if step == steps - 1 else {} for step in range(steps)]
    turns = tuple(Turn(2 * step + 1, 1, [], costs={'hot': cost / steps}, info=info) for step, info in enumerate(infos))
    return Episode(Piece(None, None), [shown(0)], messages, turns, 'done')


@pytest.mark.parametrize(('success', 'cost', 'code'), [(0.9, 0.3, 0), (0.7, 0.3, 1), (0.9, 0.7, 1)])
def test_a_careless_robot_fails(
    success: float,
    cost: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(robot, 'TRIED', 10)
    stages = {'untrained': (0.0, 0.0), 'imitating/slice_end': (1.0, 1.0), 'careful/slice_end': (success, cost)}

    def play(model: Path, environment: str, seeds: Sequence[int]) -> list[Episode]:
        share, own = stages[str(model.relative_to(tmp_path))]
        return [episode(2 + number % 3, number < share * 10, own) for number, _ in enumerate(seeds)]

    monkeypatch.setattr(played, 'play', play)
    assert robot.check(tmp_path) == code
    said = capsys.readouterr().out
    assert ('FAILED' in said) == bool(code) and all(words in said for words in robot.STAGES.values())
    assert json.loads((tmp_path / 'robot.json').read_text())['careful/slice_end']['success'] == success
    with Image.open(tmp_path / 'robot.gif') as shown:
        assert shown.n_frames >= 4, 'all steps of the longest episode'


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(900)
def test_a_demo_of_a_few_steps_runs_through_and_says_that_they_are_too_few(tmp_path: Path) -> None:
    done = demonstrate('demo_robot', tmp_path / 'demo', EPISODES='80', STEPS='6', SAFE_STEPS='9')
    assert done.returncode == 1 and 'FAILED' in done.stdout, done.stdout + done.stderr
    assert (tmp_path / 'demo' / 'robot.gif').exists()


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_the_demo_passes_under_the_real_launcher(tmp_path: Path) -> None:
    done = demonstrate('demo_robot', tmp_path / 'demo')
    assert done.returncode == 0, done.stdout + done.stderr
