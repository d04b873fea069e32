"""The tasks of CHORES in words. Recordings hold them as records of what is looked for and where."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.registry import nearest

STRETCH_ACTIONS: Mapping[str, str] = {
    'm': 'move_ahead',
    'r': 'rotate_right',
    'l': 'rotate_left',
    'b': 'move_back',
    'end': 'done',
    'sub_done': 'sub_done',
    'ls': 'rotate_left_small',
    'rs': 'rotate_right_small',
    'p': 'pickup',
    'zm': 'move_arm_in',
    'zp': 'move_arm_out',
    'yp': 'move_arm_up',
    'ym': 'move_arm_down',
    'wp': 'wrist_open',
    'wm': 'wrist_close',
    'yms': 'move_arm_down_small',
    'zms': 'move_arm_in_small',
    'zps': 'move_arm_out_small',
    'yps': 'move_arm_up_small',
    'd': 'dropoff',
}
"""The actions of the robot in the order in which published policies number them, by the short names of recordings."""

Task = Mapping[str, Any]
GO = ('go to', 'locate', 'find', 'search for', 'navigate to')
TAKE = ('pick up', 'take', 'grab', 'grasp', 'clutch', 'hold')
VOWELS = 'aeiou'


def instruction_of(task: Task, episode: str) -> str:
    """Returns what a task is in words. Which of several words for it hangs on the name of the episode alone.

    Raises SampleError for a kind of task that is not known, and for a record that lacks what its kind needs.
    """
    kind = task['task_type']
    if kind not in SAYING:
        raise SampleError(f"the kind of task '{kind}' is not known.{nearest(kind, list(SAYING))}")
    try:
        return SAYING[kind](task, _Words(episode))
    except (KeyError, IndexError, TypeError) as error:
        raise SampleError(f"the record of a task '{kind}' lacks {error}: {str(dict(task))[:120]}.") from error


class _Words:
    """Words of which there are several."""

    def __init__(self, episode: str) -> None:
        self._episode = episode

    def go(self) -> str:
        return self._one_of(GO, 'go')

    def take(self) -> str:
        return self._one_of(TAKE, 'take')

    def _one_of(self, words: Sequence[str], which: str) -> str:
        return words[zlib.crc32(f'{self._episode} {which}'.encode()) % len(words)]


def _plain(name: str) -> str:
    """The name of a thing, of a synset such as `garbage_can.n.01` the word."""
    return name.partition('.n.')[0].lower().replace('_', ' ').strip()


def _a(name: str) -> str:
    word = _plain(name)
    return f'{"an" if word[:1] in VOWELS else "a"} {word}'


def _target(task: Task) -> str:
    if task.get('synsets'):
        return task['synsets'][0]
    return task.get('target_object_type') or task['object_types'][0]


def _go_to_target(task: Task, words: _Words) -> str:
    return f'{words.go()} {_a(_target(task))}'


def _fetch(task: Task, words: _Words) -> str:
    target = _target(task)
    return f'{words.go()} {_a(target)} and {words.take()} that {_plain(target)}'


def _in_order(task: Task, words: _Words) -> str:
    first, *others, last = (_a(name) for name in task['synsets'])
    listed = f'{", ".join([first, *others])}, and {last}' if others else f'{first} and {last}'
    return f'{words.go()} {listed}, in that order'


def _attribute(task: Task, words: _Words) -> str:
    how, target = task['rel_attribute'], _plain(_target(task))
    if isinstance(how, str):
        said = f'{_plain(how)} {target}'
    else:
        said = f'{target} {_plain(how[0])} {"to" if _plain(how[0]) == "closest" else "from"} the {_plain(how[1])}'
    return f'{words.go()} the {said} in the {_plain(task["room_type"])}'


def _beside(task: Task, words: _Words) -> str:
    others = [_a(name) for name in task['reference_synsets']]
    where = f'near {others[0]} and {others[1]}' if task['reference_type'] == 'near' else f'on {others[0]}'
    return f'{words.go()} {_a(_target(task))} {where}'


def _rooms(task: Task, words: _Words) -> str:
    return (
        f'go to all {task["num_rooms_in_house"]} rooms in the house. indicate when you have seen a new room and when '
        'you are done'
    )


def _affordance(task: Task, words: _Words) -> str:
    return f'{words.go()} {_a(_target(task))} that can best be used for {_plain(task["affordance"])}'


SAYING: Mapping[str, Callable[[Task, _Words], str]] = {
    **dict.fromkeys(('ObjectNavType', 'EasyObjectNavType', 'BPEObjectNavType'), _go_to_target),
    **dict.fromkeys(('FetchType', 'EasyFetchType'), _fetch),
    **dict.fromkeys(('ObjectNavMulti', 'BPEObjectNavMulti'), _in_order),
    'PickupType': lambda task, words: f'{words.take()} {_a(_target(task))}',
    'RoomVisit': _rooms,
    'RoomNav': lambda task, words: f'{words.go()} {_a(task["room_types"][0])}',
    'ObjectNavRoom': lambda task, words: f'{_go_to_target(task, words)} in the {_plain(task["room_type"])}',
    'ObjectNavRelAttribute': _attribute,
    'ObjectNavLocalRef': _beside,
    'ObjectNavAffordance': _affordance,
    'GoToPoint': lambda task, words: f'{words.go()} point',
    'GoNearPoint': lambda task, words: f'{words.go()} object',
}
"""By the kind of a task. Not there is `ObjectNavDescription`, whose words are in the annotations of objects and not in
recordings: it needs the option `instruction`."""
