"""Environments of gymnasium: words for actions, what is shown, what ends them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import Autoreset

from align_anything.core.actions import Actions
from align_anything.core.errors import WorldError
from align_anything.environments import Said
from align_anything.environments.pool import EpisodeFailed, Pool
from align_anything.environments.worlds.gym import Gymnasium
from tests.environments.one import One

FROZEN = {'id': 'FrozenLake-v1', 'options': {'is_slippery': False}, 'actions': ['left', 'down', 'right', 'up']}
FROZEN |= {'observation': 'ansi', 'success': 'reward'}


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps, costs as much, and ends itself at the third, which it begins again by itself."""

    action_space = gymnasium.spaces.Discrete(2, start=3)
    observation_space = gymnasium.spaces.Dict(
        {'count': gymnasium.spaces.Box(0, 9, (2,), np.float32), 'said': gymnasium.spaces.Text(9)}
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self.observed(), {}

    def observed(self) -> dict[str, Any]:
        return {'count': np.array([self.count, 1 / 3], np.float32), 'said': 'hm'}

    def step(self, action: int) -> Any:
        assert action in (3, 4)
        self.count += 1
        return self.observed(), np.float64(action), self.count == 3, False, {'heat': self.count, 'won': action == 4}


@pytest.fixture(autouse=True)
def registered() -> None:
    if 'Counter-v0' not in gymnasium.registry:
        gymnasium.register('Counter-v0', lambda: Autoreset(Counter()), max_episode_steps=None)


def text(messages: list[dict[str, Any]]) -> str:
    return ' '.join(part['text'] for message in messages for part in message['content'] if part['type'] == 'text')


def test_a_lake_is_crossed_by_words() -> None:
    one = One(Pool('gymnasium', FROZEN), {}, 2**62)
    assert text(one.begin().messages) == 'Say one of: left, down, right, up.\n\n[S]FFF\nFHFH\nFFFH\nHFFG\n'
    answered = one.step(Said('Not up and not left: Down!'))
    assert '\n[F]HFH\n' in text(answered.messages) and answered.step.reward == 0 and not answered.step.done
    lost = one.step(Said('downwards'))
    assert text(lost.messages) == 'Say one of: left, down, right, up.' and lost.step.reward is None
    for word in ('down', 'right', 'right', 'down', 'right'):
        answered = one.step(Said(word))
    assert answered.step.done and answered.step.reward == 1 and answered.step.info == {'success': True}
    with pytest.raises(EpisodeFailed, match='the episode is over'):
        one.step(Said('left'))


def test_its_time_limit_leaves_an_episode_unfinished() -> None:
    one = One(Pool('gymnasium', {**FROZEN, 'options': {'is_slippery': False, 'max_episode_steps': 2}}), {}, 1)
    one.begin()
    one.step(Said('left'))
    step = one.step(Said('left')).step
    assert step.truncated and not step.done and step.info == {'success': False}


def test_what_resets_itself_mixes_no_episodes_and_costs_are_told() -> None:
    one = One(Pool('gymnasium', {'id': 'Counter-v0', 'cost': 'heat', 'success': 'won'}), {}, 1)
    assert text(one.begin().messages) == 'Say one of: 3, 4.\ncount: [0.0, 0.333]\nsaid: hm'
    steps = [one.step(Said(word)).step for word in ('3', 'pass', '4', '4')]
    assert [step.costs for step in steps] == [{'heat': 1}, {'heat': 0}, {'heat': 2}, {'heat': 3}]
    assert [step.reward for step in steps] == [3, None, 4, 4] and steps[-1].done
    assert steps[-1].info == {'success': True} and 'count: [3.0' in steps[-1].observation.messages
    with pytest.raises(EpisodeFailed, match='the episode is over'):
        one.step(Said('3'))


@pytest.mark.parametrize(('option', 'name', 'reason'), [('cost', 'heta', 'heat'), ('success', 'wno', 'won')])
def test_a_name_that_no_episode_tells_of_is_no_zero(option: str, name: str, reason: str) -> None:
    one = One(Pool('gymnasium', {'id': 'Counter-v0', option: name}, retries=0), {}, 1)
    one.begin()
    one.step(Said('3'))
    one.step(Said('3'))
    with pytest.raises(EpisodeFailed, match=f"option '{option}'.* no '{name}'. Did you mean '{reason}'"):
        one.step(Said('3'))
    # What may be told of when it happens is nothing until then.
    one = One(Pool('gymnasium', {'id': 'Counter-v0', option: 'fell_down'}), {}, 1)
    one.begin()
    steps = [one.step(Said('3')).step for _ in range(3)]
    assert steps[-1].done and not any(sum(step.costs.values()) for step in steps)


def test_pictures_of_minigrid_hang_on_the_seed() -> None:
    kwargs = {'id': 'MiniGrid-Fetch-5x5-N2-v0', 'observation': 'image', 'pixels': 40, 'success': 'reward'}
    shown = {}
    for seed in (1, 1, 2):
        one = One(Pool('gymnasium', kwargs), {}, seed)
        (message,) = one.begin().messages
        picture, said = message['content']
        assert picture['image'].size == (40, 40)
        assert said['text'].startswith('Say one of: left, right, forward, pickup, drop, toggle, done.\n')
        shown.setdefault(seed, []).append((picture['image'].tobytes(), said['text']))
        (message,) = one.step(Said('I turn LEFT')).messages
        assert [part['type'] for part in message['content']] == ['image', 'text']
        one.close()
    assert shown[1][0] == shown[1][1] != shown[2][0]


def test_a_row_may_bring_arguments() -> None:
    pool = Pool('gymnasium', FROZEN)
    seats = pool.open(
        [
            {'environment_kwargs': {'options': {'map_name': '8x8'}, 'rules': None}},
            {'environment_kwargs': '{"id": 3}'},
            {},
        ],
        [0, 0, 0],
    )
    large, wrong, small = pool.begin(seats)
    assert len(text(large.messages)) > len(text(small.messages)) > 40
    assert type(wrong) is EpisodeFailed and 'cannot be made' in str(wrong)
    (broken,) = pool.begin(pool.open([{'environment_kwargs': '{'}], [0]))
    assert 'no JSON' in str(broken)
    (broken,) = pool.begin(pool.open([{'environment_kwargs': [3]}], [0]))
    assert 'should name arguments' in str(broken)


def test_numbers_are_said_and_done_within_their_bounds() -> None:
    said, done, bounded = (Gymnasium('Pendulum-v1', {'max_episode_steps': 3}, ['torque']) for _ in range(3))
    assert said.actions.dimensions == ('torque',)
    shown = said.reset({}, 5).messages
    assert shown.startswith('Say the numbers of an action: torque from -2 to 2.\n[')
    assert done.reset({}, 5).messages == bounded.reset({}, 5).messages == shown
    first, second = said.step(Said('Not 0.5, but -1.5')), said.step(Said('2'))
    both = done.step(Said('', actions=Actions(torch.tensor([[-1.5], [2.0]]))))
    assert both.observation == second.observation and both.reward == first.reward + second.reward
    far = bounded.step(Said('', actions=Actions(torch.tensor([[-1.5], [9.0], [0.0], [1.0]]))))
    assert far.truncated and far.observation == said.step(Said('0')).observation
    with pytest.raises(WorldError, match='has 1 numbers here, and the policy writes 2 numbers'):
        done.step(Said('', actions=Actions(torch.zeros(1, 2))))
    assert done.step(Said('nothing')).observation.messages.startswith('Say the numbers')


def test_named_actions_of_a_policy_are_done_in_order() -> None:
    world = Gymnasium(**FROZEN)
    world.reset({}, 0)
    step = world.step(Said('', actions=Actions(names=('down', 'down', 'Right', 'elsewhere'))))
    assert step.observation.messages.endswith('\nF[F]FH\nHFFG\n') and world.actions.names == tuple(FROZEN['actions'])


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        ({'id': 'FrozenLak-v1'}, "gymnasium makes no 'FrozenLak-v1': NameNotFound.*FrozenLake"),
        ({'id': 'Pendulum-v1', 'actions': ['a', 'b']}, 'has 1 numbers in an action'),
        ({**FROZEN, 'actions': ['left', 'right']}, 'has 4 actions, which need as many'),
        ({**FROZEN, 'actions': ['a', 'b', 'A', 'c']}, 'different words'),
    ],
)
def test_what_cannot_be_acted_in_is_refused(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        Gymnasium(**kwargs)
