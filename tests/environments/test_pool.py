"""Episodes of environments that behave, and of those that raise, lie, and return too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align_anything.core.errors import SettingsError, WorldError
from align_anything.environments import BatchEnvironment, Environment, Observation, Said, Step, wire
from align_anything.environments.base import Alone, checked_kwargs, environment_names, get_environment
from align_anything.environments.hosts import Here
from align_anything.environments.observing import Limits
from align_anything.environments.pool import EpisodeFailed, Pool, Session
from tests.environments.one import One, only

OWN = """
import random
from align_anything.environments import Environment, Observation, Said, Step, register_environment

class Echo(Environment):
    made = 0

    def __init__(self, times: int = 2, breaks: str = ''):
        self.times, self.breaks = times, breaks
        type(self).made += 1

    def reset(self, row, seed):
        self.said = []
        return Observation(f'Begin {random.Random(seed).randrange(100)}.')

    def step(self, said):
        self.said.append(said.text)
        if self.breaks == 'once' and type(self).made == 1 and len(self.said) == 2:
            raise OSError('the line is cut')
        if self.breaks == 'always' and len(self.said) == 2:
            raise SystemExit(0)
        if self.breaks == 'otherwise' and len(self.said) == 2:
            raise OSError('again')
        told = f'{self.made} ' if self.breaks == 'otherwise' else ''
        return Step(Observation(told + ' '.join(self.said)), reward=0.5, done=len(self.said) == self.times)

    def close(self):
        if self.breaks == 'closing':
            raise OSError('the line is cut')
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / 'own.py').write_text(OWN)
    return f'{tmp_path}/own.py:Echo'


def text(messages: list[dict[str, Any]]) -> list[str]:
    return [part['text'] for message in messages for part in message['content']]


def test_an_episode_of_a_users_own_class(own: str) -> None:
    session = One(Pool(own, {'times': 2}), {}, 7)
    again = One(Pool(own), {}, 7)
    assert text(session.begin().messages) == text(again.begin().messages)
    assert text(One(Pool(own), {}, 8).begin().messages) != text(again.begin().messages)
    first, second = session.step(Said('a')), session.step(Said('b'))
    assert text(first.messages) == ['a'] and not first.step.done and first.step.reward == 0.5
    assert text(second.messages) == ['a b'] and second.step.done and session.score() is None


def test_a_failure_is_tried_again_where_the_episode_stood(own: str) -> None:
    session = One(Pool(own, {'breaks': 'once'}), {}, 7)
    session.begin()
    session.step(Said('a'))
    assert text(session.step(Said('b')).messages) == ['a b']


@pytest.mark.parametrize(
    ('breaks', 'reason'), [('always', 'SystemExit: 0'), ('otherwise', 'it went otherwise than before it failed')]
)
def test_and_told_where_it_fails_again(own: str, breaks: str, reason: str) -> None:
    session = One(Pool(own, {'breaks': breaks}), {}, 7)
    session.begin()
    session.step(Said('a'))
    with pytest.raises(EpisodeFailed, match=reason) as failed:
        session.step(Said('b'))
    assert 'Traceback' in failed.value.trace


def test_what_fails_to_close_is_told_and_fails_nobody(own: str, caplog: pytest.LogCaptureFixture) -> None:
    session = One(Pool(own, {'breaks': 'closing'}), {}, 7)
    session.begin()
    session.close()
    assert 'Echo failed to close: OSError: the line is cut' in caplog.text


def test_rows_may_name_their_environment(own: str) -> None:
    pool = Pool(own, {'times': 1})
    assert 'number from 1 to 100' in text(One(pool, {'environment': 'number_game'}, 0).begin().messages)[0]
    with pytest.raises(EpisodeFailed, match="unknown environment 'numbergame'.*Did you mean 'number_game'"):
        One(pool, {'environment': 'numbergame'}, 0).begin()


def test_names_and_arguments_are_checked(own: str) -> None:
    assert {'calculator', 'number_game'} <= {*environment_names()}
    assert checked_kwargs('number_game', {'high': '9'}) == {'low': 1, 'high': 9, 'guesses': 8}
    with pytest.raises(SettingsError, match="no option 'hihg'. Did you mean 'high'"):
        checked_kwargs('number_game', {'hihg': 9})
    with pytest.raises(WorldError, match="no environment 'Ecoh'. Did you mean 'Echo'"):
        get_environment(own.replace('Echo', 'Ecoh'))


class Told(Environment):
    """Answers with what it is given."""

    answer: Any = None

    def step(self, said: Said) -> Any:
        return self.answer


class Sent(Alone):
    """One whose steps go through a line, as those of other processes do."""

    def step(self, said: Sequence[Said | None]) -> Any:
        (own,) = super().step(said)
        return [wire.step_in(wire.from_bytes(wire.to_bytes(wire.step_out(own))))]


def answered(answer: Any, kind: type[Alone] = Alone, **limits: Any) -> Any:
    world = Told()
    world.answer = answer
    session = Session('told', lambda: kind(world), [{}], [0], Limits(**limits), 0)
    session.begin()
    return only(session.step([Said('x')]))


@pytest.mark.parametrize(
    ('answer', 'reason'),
    [
        (None, 'step returned NoneType'),
        (Step(), 'neither ends the episode'),
        (Step(done=True, reward=float('nan')), 'reward of a step is nan'),
        (Step(done=True, reward=float('-inf')), 'reward of a step is -inf'),
        (Step(done=True, reward='1'), "reward of a step is '1'"),
        (Step(done=True, reward=np.array(1.0)), 'reward of a step is array'),
        (Step(done=True, reward=10**400), 'no float holds'),
        (Step(done=True, reward=1e300), 'float32 does not hold'),
        (Step(done=True, costs={'heat': 'much'}), "cost 'heat' of a step is 'much'"),
        (Step(done=True, costs={'heat': 1e300}), "cost 'heat' of a step is 1e"),
        (Step(done=True, costs=None), 'costs of a step are None'),
        (Step(done=True, costs={3: 1.0}), 'called 3'),
        (Step(done='False'), "'done' of a step is 'False'"),
        (Step(Observation('x'), truncated=[1, 2]), "'truncated' of a step is"),
        (Step(done=True, info=None), 'info of a step is None'),
        (Step(done=True, info={'success': 'yes'}), "'success' in the info of a step is 'yes'"),
        (Step(done=True, info={'tool_errors': float('nan')}), "'tool_errors' in the info of a step is nan"),
        (Step(Observation(b'bytes')), 'a text or a list of turns'),
        (Step(Observation({'role': 'user', 'content': 'x'})), 'a text or a list of turns'),
        (Step(Observation([{'role': ['user'], 'content': 'x'}])), 'a turn of'),
        (Step(Observation('half \ud83d')), 'half a surrogate pair'),
        (
            Step(Observation([{'role': 'user', 'content': [{'type': 'image', 'image': Image.new('F', (2, 2))}]}])),
            'float',
        ),
        (Step('text'), 'not a str'),
        (Step(Observation([{'role': 'assistant', 'content': 'x'}])), "a turn of 'assistant'"),
        (Step(Observation([{'role': 'user'}])), 'content'),
        (Step(Observation([{'role': 'user', 'content': [{'type': 'image', 'image': b'none'}]}])), 'image'),
    ],
)
@pytest.mark.parametrize('kind', [Alone, Sent])
def test_what_breaks_the_contract_is_named_wherever_it_is(answer: Any, reason: str, kind: type[Alone]) -> None:
    with pytest.raises(EpisodeFailed, match=reason):
        answered(answer, kind)


@pytest.mark.parametrize('kind', [Alone, Sent])
def test_numbers_of_any_library_are_numbers(kind: type[Alone]) -> None:
    numbers = (True, np.True_, np.float32(1), np.int64(1), Fraction(1))
    for number in numbers:
        step = answered(Step(reward=number, costs={'heat': number}, done=number, info={'success': number}), kind).step
        assert (step.reward, step.costs, step.done) == (1.0, {'heat': 1.0}, True) and type(step.reward) is float
        assert step.info == {'success': 1}
    assert answered(Step(done=True, info={'tool_errors': None}), kind).step.info == {}


@pytest.mark.parametrize('kind', [Alone, Sent])
@pytest.mark.parametrize('mode', ['RGBA', 'I;16', 'I', 'CMYK', '1', 'LA', 'P', 'HSV'])
def test_pictures_of_any_mode_are_seen_in_rgb(mode: str, kind: type[Alone]) -> None:
    picture = {'type': 'image', 'image': Image.new(mode, (1, 1))}
    (message,) = answered(Step(Observation([{'role': 'user', 'content': [picture]}])), kind).messages
    (part,) = message['content']
    assert part['image'].mode == 'RGB' and part['image'].size == (1, 1)


@pytest.mark.parametrize(
    'tools', [[object()], [{'type': 'function'}], [{'name': 3}], [{'name': 'f', 'parameters': {1, 2}}], 'tool', 3]
)
def test_tools_that_are_none_are_named(tools: Any) -> None:
    world = Told()
    world.tools = tools
    with pytest.raises(EpisodeFailed, match='its tools are none'):
        Session('told', lambda: Alone(world), [{}], [0], Limits(), 0).begin()


def test_no_more_is_shown_than_is_allowed() -> None:
    picture = {'type': 'image', 'image': Image.new('RGB', (8, 8))}
    long = 'a' * 600 + 'z' * (10 * 2**20)
    shown = answered(
        Step(Observation([{'role': 'user', 'content': [picture, long, picture, 'more']}])), characters=100, media=1
    ).messages
    kinds = [part['type'] for part in shown[0]['content']]
    assert kinds == ['image', 'text', 'text', 'text'] and shown[0]['content'][0]['image'].size == (8, 8)
    texts = text([{**shown[0], 'content': shown[0]['content'][1:]}])
    assert texts[0].startswith('a' * 50 + ' … [') and texts[0].endswith('z' * 50) and len(texts[0]) < 150
    assert texts[1] == '[image left out]' and len(texts[2]) < 40


def test_the_number_game_ends_with_the_right_guess() -> None:
    session = One(Pool('number_game', {'high': 7, 'guesses': 4}), {}, 3)
    session.begin()
    low, high = 1, 7
    for _ in range(4):
        guess = (low + high) // 2
        answered = session.step(Said(f'Is it {guess}?'))
        if answered.step.done:
            break
        low, high = (guess + 1, high) if text(answered.messages) == ['higher'] else (low, guess - 1)
    assert answered.step.info == {'success': True} and 0 < answered.step.reward <= 1
    session.begin()
    assert text(session.step(Said('no number')).messages) == ['Say a number.']
    last: Mapping[str, Any] = {}
    for _ in range(3):
        last = session.step(Said('0')).step.info
    assert last == {'success': False}


class Chorus(BatchEnvironment):
    """Counts together, and fails once."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Observation]:
        self.said = [''] * len(rows)
        return [Observation(f'{len(rows)}') for _ in rows]

    def step(self, said: Sequence[Said | None]) -> list[Step | None]:
        if said[0] is None and self.made == 1:
            raise OSError('it broke')
        self.said = [before + ('-' if own is None else own.text) for before, own in zip(self.said, said, strict=True)]
        return [None if own is None else Step(Observation(so)) for own, so in zip(said, self.said, strict=True)]

    def score(self, number: int) -> float:
        return len(self.said[number].strip('-'))


class Choruses(Here):
    def capacity(self, name: str) -> None:
        return None

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Chorus()


def test_a_batch_of_any_size_is_asked_once_and_fails_as_one() -> None:
    pool = Pool('chorus', host=Choruses())
    seats = pool.open([{}] * 3, [0, 1, 2])
    assert [text(begun.messages) for begun in pool.begin(seats)] == [['3']] * 3
    pool.step(seats, [Said('a'), Said('b'), Said('c')])
    answers = pool.step(seats[1:], [Said('d'), Said('e')])
    assert [text(answer.messages) for answer in answers] == [['bd'], ['ce']] and Chorus.made == 2
    assert pool.score(seats) == [1, 2, 2]
    # One that is over is heard no more, whatever the environment says of it; one that goes on has to be answered.
    late = Session('late', lambda: Chorus(), [{}, {}], [0, 1], Limits(), 0)
    late.begin()
    late._environment.step = lambda said: [Step(reward=9.0, done=True), None]
    assert [own if own is None else own.step.reward for own in late._stepped(late._environment, [None, None])] == [
        None
    ] * 2
    with pytest.raises(EpisodeFailed, match='step returned NoneType'):
        late.step([Said('a'), Said('b')])
    short = Session('short', lambda: Chorus(), [{}, {}], [0, 1], Limits(), 0)
    short.begin()
    short._environment.step = lambda said: []
    with pytest.raises(EpisodeFailed, match='step of 2 episodes returned 0'):
        short.step([Said('a'), Said('b')])


class Eater(Told):
    """Takes things out of its row."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.answer = Step(done=True, info={'word': row['words'].pop()})
        row['messages'][0]['content'].append({'type': 'text', 'text': 'eaten'})
        return Observation()


def test_what_an_episode_takes_out_of_its_row_the_others_have_still() -> None:
    picture = Image.new('RGB', (8, 8))
    asked = [{'role': 'user', 'content': [{'type': 'image', 'image': picture}]}]
    row = {'messages': asked, 'words': ['sun', 'sea']}
    sessions = [Session('eater', lambda: Alone(Eater()), [row], [0], Limits(), 0) for _ in range(3)]
    for session in sessions:
        session.begin()
        assert only(session.step([Said('x')])).step.info == {'word': 'sea'}
    assert row == {
        'messages': [{'role': 'user', 'content': [{'type': 'image', 'image': picture}]}],
        'words': ['sun', 'sea'],
    }


def test_arguments_of_a_row_that_are_no_json_are_named(own: str) -> None:
    with pytest.raises(EpisodeFailed, match='environment_kwargs of the row is a text that is no JSON'):
        One(Pool(own), {'environment_kwargs': '{times: 1}'}, 0).begin()
