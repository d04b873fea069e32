"""Windows of episodes: which steps, in what chunks, the same in every worker and resumed run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Media
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.trajectories import Trajectory, turns_of
from align_anything.datasets.windows import Window, Windows, cut, numbers_of


def episode(steps: int, names: list[str] | None = None) -> tuple[Conversation, dict[str, Any]]:
    """An episode whose step n shows the pictures front-n and wrist-n and does [n, -n], or a name."""
    values = torch.tensor([[n, -n] for n in range(steps)], dtype=torch.float64)
    trajectory = Trajectory(
        'Take the cup.',
        {camera: [f'{camera}-{n}' for n in range(steps)] for camera in ('front', 'wrist')},
        Actions(values) if names is None else Actions(names=tuple(names)),
        {'arm': [[n / 10] for n in range(steps)]},
        rewards=[float(n) for n in range(steps)],
        success=True,
    )
    turns, meta = turns_of(trajectory)
    return bind_media(turns, {}), meta


def test_a_trajectory_is_a_conversation() -> None:
    turns, meta = episode(3)
    assert [turn['role'] for turn in turns] == ['user', 'assistant'] * 3
    assert turns[0]['content'] == [
        {'type': 'text', 'text': 'Take the cup.'},
        {'type': 'image', 'image': Media('image', 'front-0')},
        {'type': 'image', 'image': Media('image', 'wrist-0')},
    ]
    assert [part['type'] for part in turns[2]['content']] == ['image', 'image']
    assert turns[4]['state'] == {'arm': (0.2,)}
    assert turns[5]['content'][0]['action'].values.tolist() == [[2, -2]]
    assert meta == {'cameras': ['front', 'wrist'], 'rewards': [0.0, 1.0, 2.0], 'success': True}


@pytest.mark.parametrize(
    ('more', 'told'),
    [
        ({'pictures': {'front': ['a', 'b', 'c', 'd']}}, "3 actions, but 4 pictures of 'front'"),
        ({'state': {'arm': [[1]]}}, "1 states of 'arm'"),
        ({'rewards': [1.0]}, '1 rewards'),
        ({'actions': Actions(names=())}, "0 actions, but 3 pictures of 'front'"),
    ],
)
def test_actions_one_too_many_are_told(more: dict[str, Any], told: str) -> None:
    given = {'pictures': {'front': ['a', 'b', 'c']}, 'actions': Actions(names=('left',) * 3), **more}
    with pytest.raises(SampleError, match=told):
        turns_of(Trajectory('Go.', **given))


def numbers(turns: Conversation) -> list[list[int]]:
    """What is done in each answer."""
    done = [turn['content'][0]['action'].values for turn in turns if turn['role'] == 'assistant']
    return [[int(value) for value in chunk[:, 0]] for chunk in done]


def seen(turns: Conversation) -> list[str]:
    pictures = [[part for part in turn['content'] if part['type'] == 'image'] for turn in turns[::2]]
    return [shown[0]['image'].source for shown in pictures]


@pytest.mark.parametrize(
    ('window', 'expected'),
    [
        (Window(), [[0], [1], [2], [3], [4]]),
        (Window(2, at=0.0), [[0], [1]]),
        (Window(2, at=1.0), [[3], [4]]),
        (Window(2, at=0.5), [[2], [3]]),
        (Window(9), [[0], [1], [2], [3], [4]]),
        (Window(chunk=2), [[0, 1], [2, 3], [4]]),
        (Window(3, 3, first=1), [[1, 2, 3]]),
        # Behind the end nothing is made up.
        (Window(3, 3, first=4), [[4]]),
        (Window(4, 3, first=1), [[1, 2, 3], [4]]),
    ],
)
def test_cut(window: Window, expected: list[list[int]]) -> None:
    turns, meta = cut(*episode(5), window)
    assert numbers(turns) == expected
    # Each chunk follows what was seen before its first step.
    assert seen(turns) == [f'front-{chunk[0]}' for chunk in expected]
    assert turns[0]['content'][0] == {'type': 'text', 'text': 'Take the cup.'}
    assert all(part['type'] == 'image' for turn in turns[2::2] for part in turn['content'])
    flat = [number for chunk in expected for number in chunk]
    assert meta['rewards'] == [float(number) for number in flat]
    assert meta['success'] and meta['first_step'] == flat[0]


def test_an_instruction_that_follows_the_picture_does_so_in_every_window() -> None:
    turns, _ = episode(3)
    turns[0] = {**turns[0], 'content': turns[0]['content'][::-1]}
    window, _ = cut(turns, {}, Window(1, at=1.0))
    assert [part['type'] for part in window[0]['content']] == ['image', 'image', 'text']


def test_what_stands_before_the_episode_stays() -> None:
    turns, _ = episode(4)
    opened = [{'role': 'system', 'content': [{'type': 'text', 'text': 'Be safe.'}], 'tools': ['a tool']}, *turns]
    window, _ = cut(opened, {}, Window(1, at=1.0))
    assert window[0] == opened[0] and [turn['role'] for turn in window] == ['system', 'user', 'assistant']
    window, _ = cut([{**turns[0], 'tools': ['a tool']}, *turns[1:]], {}, Window(1, at=1.0))
    assert window[0]['tools'] == ['a tool'] and numbers(window) == [[3]]


@pytest.mark.parametrize('content', ['Yes.', [{'type': 'action', 'action': [[1, 1], [2, 2]]}]])
def test_what_is_no_episode_of_single_steps_is_refused(content: Any) -> None:
    turns = bind_media([{'role': 'user', 'content': 'Go.'}, {'role': 'assistant', 'content': content}], {})
    with pytest.raises(SampleError, match='every answer is one step of actions'):
        cut(turns, {}, Window(1))


@pytest.mark.parametrize(
    ('steps', 'chunk', 'count'), [(None, 1, 10), (None, 4, 10), (4, 1, 7), (4, 4, 10), (6, 4, 8), (20, 1, 1)]
)
def test_all_windows_of_an_episode(steps: int | None, chunk: int, count: int) -> None:
    windows = Windows(steps, chunk, 'all')
    assert windows.count(10) == count
    cuts = [cut(*episode(10), windows.starting_at(first))[0] for first in range(count)]
    assert [numbers(turns)[0][0] for turns in cuts] == list(range(count))
    # Of every one but the last few the chunks are full.
    assert all(sum(map(len, numbers(turns))) == min(windows.length, 10 - first) for first, turns in enumerate(cuts))


def test_random_windows_hang_on_seed_epoch_and_row_alone() -> None:
    windows = Windows(3, seed=5)
    drawn = {(row, epoch): windows.of(row, epoch) for row in ('0', '1') for epoch in range(20)}
    assert drawn == {key: Windows(3, seed=5).of(*key) for key in drawn}
    assert len(set(drawn.values())) == 40
    assert Windows(3, seed=6).of('0', 0) != drawn['0', 0]
    begins = Counter(numbers_of(windows.of('7', epoch), [Actions(names=('a',))] * 6)[0] for epoch in range(400))
    assert sorted(begins) == [0, 1, 2, 3] and min(begins.values()) > 70


def test_the_last_steps_are_taken_as_often_as_asked() -> None:
    windows = Windows(1, last_steps=(1.0, 0.0), epochs=5)
    shares = [sum(windows.of(str(row), epoch).at == 1.0 for row in range(200)) / 200 for epoch in range(5)]
    assert shares[0] == 1.0 and shares[4] == 0.0
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0], abs=0.1)
    assert Windows(1, last_steps=(0.0, 0.5), epochs=1).of('0', 0).at < 1.0


def test_repeats_are_left_out_now_and_then_but_never_too_many() -> None:
    names = ['ahead'] * 20 + ['left'] + ['ahead'] * 20
    windows = Windows(10, thinned=True)
    drawn = [windows.of(str(row), 0) for row in range(400)]
    assert 0.65 < sum(window.thinned is not None for window in drawn) / 400 < 0.85
    done = [Actions(names=(name,)) for name in names]
    for window in drawn:
        taken = numbers_of(window, done)
        assert len(taken) == 10 and taken == sorted(set(taken))
        gaps = [number for number in range(taken[0], taken[-1]) if number not in taken]
        # Only repeats are passed over.
        assert all(names[number] == names[number - 1] for number in gaps)
    assert any(numbers_of(window, done)[-1] - numbers_of(window, done)[0] > 15 for window in drawn)
    short = numbers_of(Window(10, thinned=1), done[:10])
    assert short == list(range(10))
