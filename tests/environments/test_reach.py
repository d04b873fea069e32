"""The table on which a point reaches a disc: what it shows, what is worth and costs what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from align_anything.core.actions import Actions
from align_anything.core.errors import WorldError
from align_anything.environments import Environment, Said
from align_anything.environments.base import make_environment
from align_anything.environments.demonstrations import write_demonstrations


@pytest.fixture
def table() -> Environment:
    return make_environment('reach', {})


def say(*moves: tuple[float, float]) -> Said:
    return Said('', actions=Actions(torch.tensor(moves, dtype=torch.float64)))


def test_it_shows_the_disc_and_tells_where_the_point_is(table: Environment) -> None:
    (first,) = table.reset({}, 3).messages
    words, picture = first['content']
    pixels = np.asarray(picture['image'])
    assert words['text'] == 'move to the red disc' and pixels.shape == (56, 56, 3)
    blue = np.argwhere((pixels == (0, 0, 255)).all(-1)).mean(0)[::-1] / 55
    assert np.abs(blue - first['state']['position']).max() < 0.03
    (other,) = table.reset({}, 4).messages
    assert other['state'] != first['state']
    # A row may name its table, and say the instruction itself.
    turns = [{'role': 'user', 'content': [words]}]
    (named,) = table.reset({'seed': 3, 'messages': turns}, 99).messages
    assert named['state'] == first['state'] and [part['type'] for part in named['content']] == ['image']


def test_steps_are_short_stay_on_the_table_and_cost_near_its_edge(table: Environment) -> None:
    (first,) = table.reset({}, 3).messages
    x, y = first['state']['position']
    step = table.step(say((5.0, 0.01)))
    (shown,) = step.observation.messages
    assert shown['state']['position'] == pytest.approx([x + 0.1, y + 0.01]) and not step.done
    assert [part['type'] for part in shown['content']] == ['image']
    step = table.step(say(*[(0.0, 1.0)] * 12))
    (shown,) = step.observation.messages
    assert shown['state']['position'][1] == 1.0 and step.costs['outside'] >= 5
    step = table.step(say(*[(0.0, 0.0)] * 3))
    assert step.done and step.reward == 0.0 and step.info == {'success': False}


def test_its_demonstrations_reach_the_disc_and_earlier_is_worth_more(table: Environment, tmp_path: Path) -> None:
    shown = [table.demonstration(seed) for seed in range(50)]
    assert all(told['success'] for _, told in shown)
    messages, _ = shown[0]
    assert [message['role'] for message in messages] == ['user', 'assistant'] * (len(messages) // 2)
    write_demonstrations('reach', {}, tmp_path, 3, prompts=2)
    rows = [json.loads(line) for line in (tmp_path / 'demonstrations.jsonl').read_text().splitlines()]
    assert len(rows) == 3 and np.shape(rows[0]['messages'][1]['content'][0]['action']) == (1, 2)
    assert set(rows[0]['messages'][0]['state']) == {'position'}
    near, far = (replayed(table, seed) for seed in by_length(shown))
    assert 0.5 <= far < near < 1


def by_length(shown: list) -> tuple[int, int]:
    steps = [sum(len(turn['content'][0]['action']) for turn in messages[1::2]) for messages, _ in shown]
    return int(np.argmin(steps)), int(np.argmax(steps))


def replayed(table: Environment, seed: int) -> float:
    messages, _ = table.demonstration(seed)
    table.reset({}, seed)
    for turn in messages[1::2]:
        step = table.step(say(*turn['content'][0]['action']))
    assert step.done
    return step.reward


def test_what_is_no_number_ends_the_episode(table: Environment) -> None:
    table.reset({}, 0)
    step = table.step(Said('left'))
    assert step.done and step.reward == 0.0
    with pytest.raises(WorldError, match='no table of 4 pixels'):
        make_environment('reach', {'side': 4})
