"""Recorded episodes done again: what users get wrong is told by its name, and what is right is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align_anything.cli.main import main
from align_anything.cli.replaying import replay_dataset
from align_anything.core.errors import DataError, WorldError
from align_anything.environments.replaying import Compared

WORLD = '''
import numpy as np
from PIL import Image

from align_anything.environments import Environment, Observation, Step


class Arm(Environment):
    """An arm that goes along a line to a goal and closes its gripper there; 1 closes it, -1 opens it.

    Args:
        cameras: how many look at it.
    """

    def __init__(self, cameras: int = 1) -> None:
        self._cameras = cameras

    def reset(self, row, seed):
        self._x, self._goal, self._time = 0.0, 4 + seed % 4, 0
        return self._shown()

    def step(self, said):
        move, grip = said.actions.values[0].tolist()
        self._x += move
        self._time += 1
        there = abs(self._x - self._goal) < 0.5
        if grip > 0:
            costs = {'closed': float(not there)}
            return Step(None, float(there), costs, done=True, info={'success': there})
        return Step(self._shown(), 0.0, done=self._time >= 20)

    def _shown(self):
        pictures = []
        for camera in range(self._cameras):
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[:32, :, camera] = 90
            pixels[40:60, int(6 * self._x):int(6 * self._x) + 8] = (250, 120, 0)
            pictures.append({'type': 'image', 'image': Image.fromarray(pixels)})
        return Observation([{'role': 'user', 'content': pictures}])
'''


@pytest.fixture
def world(tmp_path: Path) -> str:
    (tmp_path / 'arm.py').write_text(WORLD)
    return f'{tmp_path}/arm.py:Arm'


def record(
    folder: Path,
    world: str,
    episodes: int = 3,
    *,
    cameras: int = 1,
    change: Any = None,
    pictures: Any = None,
    **more: Any,
) -> str:
    """Episodes that go to the goal and close the gripper; `change` spoils the actions, `pictures` the pictures."""
    import torch

    from align_anything.core.actions import Actions
    from align_anything.environments.base import Said, make_environment

    environment, lines = make_environment(world, {'cameras': cameras}), []
    for seed in range(3):
        shown = environment.reset({}, seed).messages[-1]['content']
        seen, done = [], []
        goal = 4 + seed % 4
        for step in range(goal + 1):
            seen.append([np.asarray(part['image']) for part in shown])
            done.append([1.0, -1.0] if step < goal else [0.0, 1.0])
            came = environment.step(Said('', actions=Actions(torch.tensor([done[-1]], dtype=torch.float64))))
            shown = came.observation.messages[-1]['content'] if came.observation else shown
        done = done if change is None else change(done)
        seen = seen if pictures is None else pictures(seen)
        steps = []
        for step, (action, images) in enumerate(zip(done, seen, strict=True)):
            files = {}
            for number, image in enumerate(images):
                files[f'camera{number}'] = f'{seed}_{step}_{number}.png'
                Image.fromarray(np.ascontiguousarray(image)).save(folder / files[f'camera{number}'])
            steps.append({'action': action, 'images': files, 'reward': float(step == len(done) - 1)})
        told = {'instruction': 'go', 'seed': seed, 'success': True, 'dimensions': ['x', 'gripper'], **more}
        lines.append(json.dumps({key: value for key, value in {**told, 'steps': steps}.items() if value is not None}))
    (folder / 'rows.jsonl').write_text('\n'.join(lines))
    return str(folder / 'rows.jsonl')


def again(world: str, rows: str, count: int = 1, **options: Any) -> Compared:
    return replay_dataset(world, {'cameras': count}, rows, 'Steps', options, None, 20)


def test_what_is_right_agrees(world: str, tmp_path: Path) -> None:
    found = again(world, record(tmp_path, world))
    assert found.agrees and found.episodes == 3
    assert found.told == found.alike == {'success': 3, 'reward': 3, 'pictures': 3}


def turned(turn: Any) -> Any:
    return lambda seen: [[turn(image) for image in images] for images in seen]


@pytest.mark.parametrize(
    ('pictures', 'told'),
    [
        (turned(lambda image: image[::-1]), 'the recorded pictures are flipped upside down'),
        (turned(lambda image: image[::-1, ::-1]), 'the recorded pictures are rotated by 180 degrees'),
        (turned(lambda image: image[:, ::-1]), 'the recorded pictures are mirrored'),
        (turned(np.rot90), 'the recorded pictures are rotated by 270 degrees'),
        (
            turned(lambda image: image[..., ::-1]),
            'the recorded pictures are of other colours: red and blue are exchanged',
        ),
        (lambda seen: [*seen[1:], seen[-1]], 'the recorded pictures are one step late'),
        (lambda seen: [seen[0], *seen[:-1]], 'the recorded pictures are one step early'),
        (turned(np.zeros_like), 'and nothing that was tried explains it'),
    ],
)
def test_pictures_are_told_by_what_is_wrong_with_them(pictures: Any, told: str, world: str, tmp_path: Path) -> None:
    found = again(world, record(tmp_path, world, pictures=pictures))
    assert not found.agrees and found.alike['success'] == 3
    assert all(told in line for line in found.findings) and sum(found.findings.values()) == 3
    assert any(told in line for line in found.lines())


def test_pictures_that_the_template_turns_are_compared_so(world: str, tmp_path: Path) -> None:
    """What is done to pictures of the data is done to those of the environment too, as in rollouts."""
    rows = record(tmp_path, world)
    assert again(world, rows, rotate=180).agrees
    flipped = record(tmp_path, world, pictures=turned(lambda image: image[::-1, ::-1]))
    assert not again(world, flipped, rotate=180).agrees


def test_cameras_in_another_order_are_told(world: str, tmp_path: Path) -> None:
    rows = record(tmp_path, world, cameras=2)
    assert again(world, rows, 2).agrees
    found = again(world, rows, 2, cameras=['camera1', 'camera0'])
    assert list(found.findings) == ['the cameras are recorded in another order (2, 1)']
    found = again(world, rows, 1)
    assert list(found.findings) == ['a step is recorded by 2 cameras, and the environment shows 1 pictures']


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda done: [[move, -grip] for move, grip in done], "with the other sign of 'gripper' the episode succeeds"),
        (lambda done: [[-move, grip] for move, grip in done], "with the other sign of 'x' the episode succeeds"),
        (lambda done: [[0.2, -1.0], *done[:-1]], 'no change that was tried brings it'),
        (lambda done: [[move / 2, grip] for move, grip in done], 'no change that was tried brings it'),
    ],
)
def test_actions_are_told_by_what_makes_them_succeed(change: Any, told: str, world: str, tmp_path: Path) -> None:
    found = again(world, record(tmp_path, world, change=change))
    assert found.alike['success'] == 0 and any(told in line for line in found.findings), found.findings


def test_a_gripper_from_0_to_1(world: str, tmp_path: Path) -> None:
    (tmp_path / 'arm.py').write_text(WORLD.replace('if grip > 0:', 'if grip > -0.5:'))
    rows = record(tmp_path, world, change=lambda done: [[move, float(grip > 0)] for move, grip in done])
    found = again(world, rows)
    assert "with 'gripper' from -1 to 1 in place of 0 to 1 the episode succeeds" in found.findings


def test_actions_that_are_shifted_against_the_episode(world: str, tmp_path: Path) -> None:
    # What led to the first picture stands first.
    late = record(tmp_path, world, change=lambda done: [[1.0, -1.0], *done], pictures=lambda seen: [seen[0], *seen])
    found = again(world, late)
    assert found.alike['success'] == 0
    assert 'without the first action the episode succeeds: actions are recorded one step late' in found.findings
    early = record(tmp_path, world, change=lambda done: done[1:], pictures=lambda seen: seen[1:])
    found = again(world, early)
    assert (
        'with the first action done twice the episode succeeds: actions are recorded one step early' in found.findings
    )


def test_an_action_too_many(world: str, tmp_path: Path) -> None:
    rows = record(tmp_path, world, change=lambda done: [*done, done[-1]], pictures=lambda seen: [*seen, seen[-1]])
    found = again(world, rows)
    assert 'the environment ends the episode before its last action: one action is too many' in found.findings
    assert found.alike['success'] == 3 and not found.agrees


def test_a_recording_that_says_no_seed(world: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="does not say from which 'seed' it began"):
        again(world, record(tmp_path, world, seed=None))


def test_actions_of_another_body(world: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r'rows.jsonl:1: .* an action there has 2 numbers \(dx, dy\)'):
        wide = record(tmp_path, world, change=lambda done: [[*action, 0.0] for action in done], dimensions=None)
        replay_dataset('reach', {}, wide, 'Steps', {}, None, 20)


def test_a_row_that_is_no_episode_is_told_and_others_are_done(world: str, tmp_path: Path) -> None:
    rows = Path(record(tmp_path, world))
    first, *others = rows.read_text().splitlines()
    rows.write_text('\n'.join([first.replace('.png', '_gone.png'), '{"steps": []}', *others]))
    found = again(world, str(rows))
    assert found.episodes == len(others) and not found.agrees
    assert 'rows.jsonl:1' in found.lines()[-1] and 'the episode has no steps' in found.lines()[-1]
    rows.write_text('{"steps": []}')
    with pytest.raises(DataError, match='not one row of .* is an episode'):
        again(world, str(rows))


def test_the_command(world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = record(tmp_path, world)
    for spoil, code in ((None, 0), (turned(lambda image: image[::-1]), 1)):
        record(tmp_path, world, pictures=spoil)
        with pytest.raises(SystemExit) as leaving:
            main(['replay', world, rows, '--template', 'Steps', '--episodes', '2'])
        assert leaving.value.code == code
        told = capsys.readouterr().out
        assert '2 episodes done again' in told and 'the same success: 2 of 2' in told
        assert ('flipped upside down' in told) == bool(code)
