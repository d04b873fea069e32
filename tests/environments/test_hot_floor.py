"""The room with hot floor: what it shows, what is worth and costs what, and how its demonstrations are written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.cli.main import main
from align_anything.core.actions import Actions
from align_anything.core.errors import WorldError
from align_anything.environments import Environment, Said
from align_anything.environments.base import make_environment
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.environments.wire import from_bytes, said_in, said_out, to_bytes


@pytest.fixture
def room() -> Environment:
    return make_environment('hot_floor', {})


def say(*names: str) -> Said:
    return Said('', actions=Actions(names=names))


def pixels(message: dict[str, Any]) -> np.ndarray:
    return np.asarray(message['content'][-1]['image'])


def test_a_room_in_which_something_cannot_be_reached_is_built_anew_without_a_word(
    room: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    # The level of MiniGrid prints what it rejects: of these seeds only 349 does.
    for seed in (348, 349):
        room.reset({}, seed)
    assert capsys.readouterr().out == ''


def test_it_shows_what_the_agent_sees_and_says_what_it_wants_once(room: Environment) -> None:
    (first,) = room.reset({}, 3).messages
    words, picture = first['content']
    assert words['text'].startswith('pick up the ') and picture['image'].size == (56, 56)
    (again,) = room.reset({}, 3).messages
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(room.reset({}, 4).messages[0]))
    # A row may name its room, and say the mission itself.
    turns = [{'role': 'user', 'content': [words]}]
    (named,) = room.reset({'seed': 3, 'messages': turns}, 99).messages
    assert [part['type'] for part in named['content']] == ['image'] and np.array_equal(pixels(named), pixels(first))
    # Tables have an empty cell where a row names none.
    assert np.array_equal(pixels(room.reset({'seed': None}, 3).messages[0]), pixels(first))
    for row, reason in (
        ({'messages': turns}, "says 'pick up the .*', and in its room the mission is '.*column 'seed'"),
        ({'seed': 'three'}, "'seed' of the row is 'three'"),
    ):
        with pytest.raises(WorldError, match=reason):
            room.reset(row, 4)
    left, right = (room_after(room, name) for name in ('left', 'right'))
    assert not np.array_equal(left, right)


def room_after(room: Environment, name: str) -> np.ndarray:
    room.reset({}, 3)
    return pixels(room.step(say(name)).observation.messages[0])


def test_the_bot_picks_up_what_is_asked_for_whatever_it_costs(room: Environment) -> None:
    shown = [room.demonstration(seed) for seed in range(40)]
    assert all(shown)
    costs = [told['cost'] for _, told in shown]
    assert 0.2 < np.mean(costs) < 1.2
    messages, _ = shown[0]
    acted = [message['content'][0]['action'] for message in messages if message['role'] == 'assistant']
    assert acted[-1] == 'pickup' and [message['role'] for message in messages] == ['user', 'assistant'] * len(acted)
    room.reset({}, 0)
    steps = [room.step(say(name)) for name in acted]
    assert [step.done for step in steps] == [False] * (len(acted) - 1) + [True]
    assert steps[-1].reward == 1 - len(acted) / 48 and steps[-1].info == {'success': True}
    # In chunks it is the same episode, up to the step that ends it.
    room.reset({}, 0)
    whole = room.step(say(*acted, 'left', 'left'))
    assert (whole.reward, whole.done) == (steps[-1].reward, True)
    assert whole.costs['hot_floor'] == sum(step.costs['hot_floor'] for step in steps)


def test_hot_floor_costs_once_for_each_step_onto_it() -> None:
    room = make_environment('hot_floor', {'hot': 21, 'objects': 3, 'steps': 6})
    room.reset({}, 1)
    spent = [room.step(say(name)) for name in ('forward', 'left', 'forward', 'forward', 'forward', 'forward')]
    costs = [step.costs['hot_floor'] for step in spent]
    # Turning where it is hot, and walking against a wall or a thing, cost nothing.
    assert costs[1] == 0.0 and 0 < sum(costs) < 5
    assert spent[-1].done and spent[-1].reward == 0.0 and spent[-1].info == {'success': False}


def test_words_act_too_and_nonsense_takes_time() -> None:
    room = make_environment('hot_floor', {'steps': 3})
    room.reset({}, 0)
    told = room.step(Said('Dance!')).observation.messages[0]['content'][0]['text']
    assert told == "'Dance!' is no action. There are: left, right, forward, pickup, drop."
    assert not room.step(Said(' left\n')).done
    assert room.step(Said('Dance!')).done


def test_a_room_that_holds_nothing_is_refused() -> None:
    with pytest.raises(WorldError, match='no room of 4 has 3 things and 5 hot tiles'):
        make_environment('hot_floor', {'size': 4})


def test_demonstrations_are_rows_with_pictures_beside_them(tmp_path, capsys) -> None:
    main_ends(['demonstrations', 'hot_floor', str(tmp_path), '--episodes', '4', '--prompts', '3'])
    assert capsys.readouterr().out.startswith('4 episodes, each at a cost of ')
    rows = [json.loads(line) for line in (tmp_path / 'demonstrations.jsonl').read_text().splitlines()]
    prompts = [json.loads(line) for line in (tmp_path / 'prompts.jsonl').read_text().splitlines()]
    assert [row['seed'] for row in rows] == [0, 1, 2, 3] and [row['seed'] for row in prompts] == [4, 5, 6]
    room = make_environment('hot_floor', {})
    (first,) = room.reset({}, 2).messages
    words, picture = rows[2]['messages'][0]['content']
    assert words == first['content'][0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / picture['image'])), pixels(first))
    assert prompts[0]['prompt'] == room.reset({}, 4).messages[0]['content'][0]['text']
    with pytest.raises(WorldError, match="'number_game' shows nobody how to act in it"):
        write_demonstrations('number_game', {}, tmp_path, 1)


def main_ends(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0


def test_a_room_in_another_process_is_told_what_is_done() -> None:
    said = Said(
        'left', parts=[{'type': 'action', 'action': Actions(names=('left',))}], actions=Actions(names=('left',))
    )
    sent = from_bytes(to_bytes(said_out(said)))
    assert said_in(sent).actions.names == ('left',) == said_in(sent).parts[0]['action'].names
    arm = Said('', actions=Actions(torch.tensor([[0.25, -1.0]], dtype=torch.float64)))
    assert said_in(from_bytes(to_bytes(said_out(arm)))).actions.values.tolist() == [[0.25, -1.0]]
    assert said_in(from_bytes(to_bytes(said_out(Said('x'))))).actions is None
