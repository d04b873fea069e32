"""What is wrong with an environment of a user, told before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.core.errors import WorldError
from align_anything.environments.base import capacity_of, make_batch
from align_anything.environments.remote import Remote
from align_anything.environments.trying import offered_by

WORLD = """
from align_anything.environments import BatchEnvironment, Environment, Observation, Step


class World(Environment):
    def reset(self, row, seed):
        self.simulator = open(__file__)
        return Observation('x')

    def step(self, said):
        return Step(done=True)

    def close(self):
        self.simulator.close()


class Toolless(World):
    @property
    def tools(self):
        return self.simulator.tools


class Named(World):
    actions = ['up', 'down']


class Seedless(World):
    def reset(self, row):
        pass


class Several(World):
    def step(self, said, more):
        pass


class Awaited(World):
    async def step(self, said):
        pass


class Stepless(Environment):
    pass


class Scored(World):
    score = 1.0


class Crowd(BatchEnvironment):
    def reset(self, rows, seeds):
        return [Observation('x') for _ in rows]

    def step(self, said):
        return [Step(done=True) for _ in said]


class Nobody(Crowd):
    capacity = -1


class Late(Crowd):
    @property
    def capacity(self):
        return 2


class Own(Crowd):
    def __init__(self):
        self.capacity = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / 'world.py').write_text(WORLD)
    return f'{tmp_path}/world.py'


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('Toolless', "cannot tell its tools, rewards and actions before an episode: AttributeError: .* 'simulator'"),
        ('Named', r"actions are \['up', 'down'\], and should be an ActionSpace"),
        ('Seedless', r'cannot be asked for reset\(row, seed\): too many positional arguments'),
        ('Several', r"cannot be asked for step\(said\): missing a required argument: 'more'"),
        ('Awaited', r'step\(said\) is async, and should be a plain function'),
        ('Stepless', 'has no step'),
        ('Scored', r'cannot be asked for score\(\): 1.0 is not a callable'),
        ('Nobody', 'capacity of the class is -1, and should be a whole number from 1'),
        ('Late', 'capacity of the class is <property'),
        ('Own', r'sets its capacity \(2\) when it is made: it belongs to the class'),
    ],
)
def test_what_cannot_be_asked_is_refused_at_the_start(file: str, name: str, reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        offered_by(f'{file}:{name}', {})


def test_what_cannot_be_closed_before_an_episode_is_told_and_taken(file: str, caplog: pytest.LogCaptureFixture) -> None:
    assert offered_by(f'{file}:World', {}) == ([], True, None)
    assert "failed to close: AttributeError: 'World' object has no attribute 'simulator'" in caplog.text
    assert offered_by(f'{file}:Crowd', {}) == ([], True, None)


def test_nobody_makes_an_environment_of_no_capacity(file: str) -> None:
    assert capacity_of(f'{file}:Crowd') is None and capacity_of(f'{file}:World') == 1
    for name in ('Nobody', 'Late', 'Own'):
        with pytest.raises(WorldError, match='capacity'):
            make_batch(f'{file}:{name}', {})


@pytest.mark.parametrize(
    ('url', 'reason'), [('http://127.0.0.1:eighty', "Invalid port: 'eighty'"), ('https://', 'names no machine')]
)
def test_what_is_no_address_is_refused(url: str, reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        Remote(url)


def test_a_file_is_found_by_its_name_wherever_an_environment_goes(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_batch('world.py:World', {}).capacity == 1
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert make_batch('world.py:World', {}).capacity == 1
    with pytest.raises(WorldError, match='there is no file'):
        make_batch('word.py:World', {})
