"""Actions and states in rows: the forms that they have, where they may stand, and what is said of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from align_anything.core.actions import Actions
from align_anything.core.errors import DataError, SampleError
from align_anything.core.store import digest
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.features import Written
from tests.datasets.fakes import make_dataset, write_rows


def doing(action: Any, **more: Any) -> list[dict[str, Any]]:
    part = {'type': 'action', 'action': action, **more}
    return [{'role': 'user', 'content': 'Go.'}, {'role': 'assistant', 'content': [part]}]


def done(action: Any) -> Actions:
    return bind_media(doing(action), {})[1]['content'][0]['action']


@pytest.mark.parametrize(
    ('action', 'names'), [('left', ('left',)), (['left', 'right'], ('left', 'right')), (('up',), ('up',))]
)
def test_named_actions(action: Any, names: tuple[str, ...]) -> None:
    found = done(action)
    assert found.names == names and found.values is None and len(found) == len(names)


@pytest.mark.parametrize(
    ('action', 'values'),
    [
        ([0.5, -1], [[0.5, -1]]),
        ([[0.5, 1], [0.25, 0]], [[0.5, 1], [0.25, 0]]),
        ([Written('0.50'), 2], [[0.5, 2]]),
        (numpy.array([1.5, 2], dtype=numpy.float32), [[1.5, 2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (Actions(torch.tensor([[7.0]], dtype=torch.float64)), [[7]]),
    ],
)
def test_numbers(action: Any, values: list[list[float]]) -> None:
    found = done(action).values
    assert found.dtype == torch.float64 and found.tolist() == values


@pytest.mark.parametrize(
    ('action', 'told'),
    [
        ([], 'An action is a name'),
        ('', 'name is empty'),
        ([[1, 2], [3]], 'a chunk of actions with 1 and 2 numbers'),
        ([1, float('nan')], 'not all of it numbers'),
        (Actions(torch.tensor([[1.0, float('nan')]])), r'not finite: \[1, nan\]'),
        ([True, 1], 'not all of it numbers'),
        ([1, 'left'], 'not all of it numbers'),
        (3, 'An action is a name'),
        ({'x': 1}, 'An action is a name'),
        (Actions(names=()), 'no steps'),
        (None, "without an 'action'"),
    ],
)
def test_what_is_no_action_is_refused_with_the_forms_there_are(action: Any, told: str) -> None:
    with pytest.raises(SampleError, match=told):
        done(action)


def test_only_assistant_turns_act_and_only_user_turns_have_a_state() -> None:
    turns = doing('left')
    turns[0] = {**turns[0], 'content': [*turns[1]['content'], {'type': 'text', 'text': 'Go.'}]}
    with pytest.raises(SampleError, match=r'turn 0 \(user\) has an action, but only assistant turns act'):
        bind_media(turns, {})
    with pytest.raises(SampleError, match=r'turn 1 \(assistant\) has a state, which only user turns have'):
        bind_media([doing('left')[0], {**doing('left')[1], 'state': [1]}], {})
    with pytest.raises(SampleError, match="'index', which nothing reads"):
        bind_media(doing('left', index=1), {})


@pytest.mark.parametrize(
    ('state', 'expected'),
    [
        ([0.5, 1], {'state': (0.5, 1.0)}),
        ({'arm': [1, 2], 'gripper': 0.5, 'absent': None}, {'arm': (1.0, 2.0), 'gripper': (0.5,)}),
        (numpy.array([2.0]), {'state': (2.0,)}),
    ],
)
def test_state(state: Any, expected: dict[str, tuple[float, ...]]) -> None:
    turns = doing('left')
    assert bind_media([{**turns[0], 'state': state}, turns[1]], {})[0]['state'] == expected


@pytest.mark.parametrize('state', [{'arm': 'high'}, {'arm': [1, float('inf')]}, [[1, 2]], {'arm': []}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    turns = doing('left')
    with pytest.raises(SampleError, match='A state is numbers by name'):
        bind_media([{**turns[0], 'state': state}, turns[1]], {})


def test_actions_are_told_apart_by_what_they_do() -> None:
    keys = {digest(bind_media(doing(action), {})) for action in ('left', 'right', [1.0], [2.0], [[1.0], [1.0]])}
    assert len(keys) == 5
    assert digest(bind_media(doing([1, 2]), {})) == digest(bind_media(doing([1.0, 2.0]), {}))


def test_a_pair_that_has_no_actions_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the row holds actions, but the pair 'some_pair' takes only text, image"):
        make_dataset(write_rows(tmp_path / 'a.jsonl', [{'messages': doing('left')}]), 'Messages').probe()


@pytest.mark.parametrize(
    ('actions', 'states', 'told'),
    [
        (([1, 2], [1, 2, 3]), ({}, {}), 'the actions of the episode have 2 and 3 numbers'),
        ((['left'], [1, 2]), ({}, {}), 'some actions of the episode are names and some are numbers'),
        (([1], [2]), ({'arm': [1]}, {'arm': [1, 2]}), "the state 'arm' of the episode has 1 and 2 numbers"),
    ],
)
def test_an_episode_is_of_one_body(actions: Any, states: Any, told: str) -> None:
    turns = [turn for action in actions for turn in doing(action)]
    shown = [{**turn, 'state': state} if state else turn for turn, state in zip(turns[::2], states, strict=True)]
    with pytest.raises(SampleError, match=told):
        bind_media([turn for pair in zip(shown, turns[1::2], strict=True) for turn in pair], {})
