"""Demonstrations in HDF5 as LIBERO and ALOHA have them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy
import torch

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column
from align_anything.datasets.formatters.recorded import Recorded, chosen
from align_anything.datasets.media.frames import open_hdf5
from align_anything.datasets.trajectories import Trajectory

STILL = 1e-4
"""How little an arm moves in a step that does nothing."""
SCENE = re.compile(r'^[A-Z]+_SCENE\d+_')
"""What the names of LIBERO's files begin with that tell of kitchens and studies."""


@register_template('Libero')
class Libero(Recorded):
    """HDF5 files of LIBERO and robomimic: `data/demo_0/{actions, obs/…}`; each row is a demonstration.

    LIBERO's pictures are upside down and are turned by 180 degrees, as a policy in its simulator must see them too.
    Steps that do nothing, by which demonstrators paused, are left out: the arm stays and the gripper does as before.

    Attributes:
        keep_no_ops: keeps steps that do nothing.
    """

    rotate: int = 180
    keep_no_ops: bool = False

    def trajectory(self, row: Row) -> Trajectory:
        path, name = column(row, 'hdf5'), column(row, 'episode')
        with open_hdf5(path) as file:
            group = _group(file, f'data/{name}')
            observed = _group(group, 'obs')
            pictures = [key for key in observed if _is_pictures(observed[key])]
            numbers = [key for key in observed if key not in pictures]
            actions = numpy.asarray(_group(group, 'actions')[:], dtype=numpy.float64)
            states = chosen('state', self.states, numbers, ('ee_states', 'gripper_states'))
            values = {key: _numbers(observed[key], len(actions)) for key in states}
            rewards = numpy.asarray(group['rewards'][:], dtype=numpy.float64) if 'rewards' in group else None
            said = _language(file['data'], path)
        kept = [step for step in range(len(actions)) if self.keep_no_ops or not _is_no_op(actions, step)]
        if not kept:
            raise SampleError(f"'{name}' of '{path}' has no step that does anything.")
        cameras = chosen('camera', self.cameras, pictures, pictures)
        return Trajectory(
            self.asked(said),
            {key: [_frame(path, f'data/{name}/obs/{key}', step) for step in kept] for key in cameras},
            Actions(torch.from_numpy(actions[kept])),
            {key: value[kept].tolist() for key, value in values.items()},
            [] if rewards is None else rewards[kept].tolist(),
            success=None if rewards is None else bool(rewards[-1] > 0),
            picture_options=self.picture_options(),
            told={'no_ops_left_out': len(actions) - len(kept)},
        )


@register_template('Aloha')
class Aloha(Recorded):
    """HDF5 files of ALOHA: `action`, `observations/{qpos, images/<camera>}`; each file is an episode.

    The files do not say what was to be done: the option `instruction` does, or an attribute of the file.
    """

    def trajectory(self, row: Row) -> Trajectory:
        path = column(row, 'hdf5')
        with open_hdf5(path) as file:
            observed = _group(file, 'observations')
            pictures = list(observed['images']) if 'images' in observed else []
            numbers = [key for key in observed if key != 'images']
            actions = numpy.asarray(_group(file, 'action')[:], dtype=numpy.float64)
            states = chosen('state', self.states, numbers, ('qpos',))
            values = {key: _numbers(observed[key], len(actions)).tolist() for key in states}
            said = next((str(file.attrs[key]) for key in ('language_instruction', 'task') if key in file.attrs), '')
        cameras = chosen('camera', self.cameras, pictures, pictures)
        frames = {
            key: [_frame(path, f'observations/images/{key}', step) for step in range(len(actions))] for key in cameras
        }
        done = Actions(torch.from_numpy(actions))
        return Trajectory(self.asked(said), frames, done, values, picture_options=self.picture_options())


def _frame(path: str, name: str, number: int) -> dict[str, Any]:
    return {'hdf5': path, 'dataset': name, 'frame': number}


def _group(parent: Any, name: str) -> Any:
    if name not in parent:
        raise SampleError(f"'{parent.file.filename}' has no '{name}'. It has: {', '.join(parent) or 'nothing'}.")
    return parent[name]


def _is_pictures(array: Any) -> bool:
    import h5py

    return isinstance(array, h5py.Dataset) and array.ndim == 4


def _numbers(array: Any, steps: int) -> numpy.ndarray:
    """The numbers before each step, `(steps, numbers)`. Raises SampleError where there are not as many rows."""
    values = numpy.asarray(array[:], dtype=numpy.float64)
    if len(values) != steps:
        raise SampleError(f"'{array.name}' of '{array.file.filename}' has {len(values)} rows, but {steps} actions.")
    return values.reshape(steps, -1)


def _is_no_op(actions: numpy.ndarray, step: int) -> bool:
    """Tells whether the arm stays where it is, and the gripper, the last number, does what it did before."""
    stays = bool(numpy.abs(actions[step, :-1]).max() < STILL)
    return stays and (not step or bool(actions[step, -1] == actions[step - 1, -1]))


def _language(data: Any, path: str) -> str:
    """What was to be done, from the file's own record or its name."""
    try:
        told = json.loads(data.attrs.get('problem_info', '{}')).get('language_instruction', '')
    except (ValueError, AttributeError):
        told = ''
    if isinstance(told, list):
        told = ''.join(map(str, told))
    if str(told).strip():
        return str(told).strip().strip('"')
    return SCENE.sub('', Path(path).stem.removesuffix('_demo')).replace('_', ' ')
