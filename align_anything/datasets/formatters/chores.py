"""Episodes of CHORES, the household tasks of a Stretch robot that SPOC and SafeVLA are trained on."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.chores_tasks import STRETCH_ACTIONS, instruction_of
from align_anything.datasets.formatters.columns import Row, column
from align_anything.datasets.formatters.recorded import Recorded, chosen
from align_anything.datasets.media.frames import number_of_frames, open_hdf5
from align_anything.datasets.trajectories import Trajectory

CAMERAS = ('raw_navigation_camera', 'raw_manipulation_camera')
LAST_ACTIONS = 'last_actions'
"""A sensor that every conversation tells anyway: what was done before."""
NOT_THERE = 1000
"""What stands for a box where there is nothing to put one around."""
BOXES = (
    'nav_task_relevant_object_bbox',
    'manip_task_relevant_object_bbox',
    'nav_accurate_object_bbox',
    'manip_accurate_object_bbox',
)
CORNERS = ('min_cols', 'min_rows', 'max_cols', 'max_rows')
IN_HAND = 'an_object_is_in_hand'
SENSORS = (
    IN_HAND,
    'relative_arm_location_metadata',
    'rooms_seen',
    'room_current_seen',
    'visible_target_4m_count',
    *BOXES,
)
ROOM_VISIT = 'RoomVisit'
OLDER_TASKS = {'SimpleExploreHouse': ROOM_VISIT, 'ObjectNavOpenVocab': 'ObjectNavDescription'}
"""Other names of kinds of tasks."""


@register_template('Chores')
class Chores(Recorded):
    """A folder of CHORES: `house_id_to_sub_house_id_train.json` and `train/<house>/` with hdf5 and mp4 files.

    Actions have their long names (`move_ahead`), whichever a recording has.

    Attributes:
        input_sensors: cameras, in this order, and sensors, whose numbers become the state of the body.
    """

    input_sensors: tuple[str, ...] = CAMERAS

    def trajectory(self, row: Row) -> Trajectory:
        sub_house = column(row, 'sub_house')
        with open_hdf5(column(row, 'sensors')) as file:
            if sub_house not in file:
                raise SampleError(f"'{row['sensors']}' has no episode '{sub_house}'. It has: {', '.join(file)}.")
            group = file[sub_house]
            said = [_text(value) for value in _array(group, 'last_action_str')]
            task = _task(_text(_array(group, 'templated_task_spec')[0]))
            wanted = [name for name in self.input_sensors if name not in (*self._cameras(), LAST_ACTIONS)]
            states = {
                name: _sensor(group, name, task, len(said))
                for name in chosen('sensor', [*wanted, *self.states], SENSORS)
            }
            where = numpy.asarray(group['last_agent_location'][0]).tolist() if 'last_agent_location' in group else None
        # Row t is what was done before frame t was seen: nothing before the first one.
        done = [STRETCH_ACTIONS.get(name, name) for name in said[1:]]
        pictures = {name: self._pictures(row, name, len(done)) for name in self._cameras()}
        return Trajectory(
            self.instruction or instruction_of(task, f'{row["house"]} {sub_house}'),
            pictures,
            Actions(names=tuple(done)),
            states,
            picture_options=self.picture_options(),
            told={
                'action_names': [*STRETCH_ACTIONS.values()],
                'task_type': task['task_type'],
                **({} if where is None else {'initial_agent_location': where}),
            },
        )

    def _cameras(self) -> list[str]:
        return list(self.cameras) or [name for name in self.input_sensors if 'camera' in name]

    def _pictures(self, row: Row, camera: str, actions: int) -> list[dict[str, Any]]:
        videos = column(row, 'videos')
        (name,) = chosen('camera', [camera], videos)
        frames = number_of_frames(videos[name])
        if frames - 1 != actions:
            raise SampleError(
                f"'{videos[name]}' has {frames} frames and the episode {actions} actions: there should be one frame "
                'more, that which shows the end. Recordings in which they differ are left out.'
            )
        return [{'video': videos[name], 'frame': step} for step in range(actions)]


def _array(group: Any, name: str) -> Any:
    if name not in group:
        raise SampleError(f"the episode '{group.name}' of '{group.file.filename}' has no '{name}'.")
    return group[name]


def _text(value: Any) -> str:
    """The text of a row of bytes, padded with zeros."""
    array = numpy.asarray(value)
    content = array.astype(numpy.uint8).tobytes() if array.dtype.kind in 'iu' else bytes(array.item())
    return content.rstrip(b'\0').decode('utf-8', 'replace')


def _task(text: str) -> dict[str, Any]:
    try:
        task = json.loads(text)
    except ValueError as error:
        raise SampleError(f'templated_task_spec is no JSON ({error}): {text[:60]!r}.') from error
    if not isinstance(task, dict) or not isinstance(task.get('task_type'), str):
        raise SampleError(f'templated_task_spec has no task_type: {text[:60]!r}.')
    return {**task, 'task_type': OLDER_TASKS.get(task['task_type'], task['task_type'])}


def _sensor(group: Any, name: str, task: Mapping[str, Any], rows: int) -> list[list[float]]:
    """The numbers of a sensor before each step: those of the last row are what followed the last one."""
    if name == IN_HAND and name not in group:
        values = numpy.zeros((rows, 1))
    elif name in BOXES:
        values = _boxes(group, name, task, rows)
    else:
        values = numpy.asarray(_array(group, name)[:], dtype=numpy.float64)
    return values.reshape(len(values), -1)[:-1].tolist()


def _boxes(group: Any, name: str, task: Mapping[str, Any], rows: int) -> numpy.ndarray:
    """The largest box around one of the objects that the task is about, and an empty second one, `(rows, 10)`.

    Each is two corners and an area.
    """
    empty = numpy.array([NOT_THERE] * 4 + [0], dtype=numpy.float64)
    none = numpy.tile(empty, (rows, 1))
    if task['task_type'] == ROOM_VISIT:
        return numpy.concatenate([none, none], axis=1)
    box = _array(group, name)
    objects = _names(_text(_array(box, 'oids_as_bytes')[0]))
    about = [object_id for found in (task.get('broad_synset_to_object_ids') or {}).values() for object_id in found]
    columns = sorted(objects.index(object_id) for object_id in about if object_id in objects)
    if not columns:
        return numpy.concatenate([none, none], axis=1)
    corners = numpy.stack([numpy.asarray(box[corner], dtype=numpy.float64)[:, columns] for corner in CORNERS], axis=-1)
    areas = (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])
    largest = areas.argmax(axis=1)
    times = numpy.arange(len(corners))
    first = numpy.concatenate([corners[times, largest], areas[times, largest, None]], axis=1)
    first[first == -1] = NOT_THERE
    return numpy.concatenate([first, none], axis=1)


def _names(text: str) -> Sequence[str]:
    """A list of names as Python writes one, read as data."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise SampleError(f'oids_as_bytes is no list of names: {text[:60]!r}.') from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise SampleError(f'oids_as_bytes is no list of names: {text[:60]!r}.')
    return found
