"""Episodes of LeRobotDataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row
from align_anything.datasets.formatters.recorded import Recorded, chosen
from align_anything.datasets.lerobot import Recording, recording_of
from align_anything.datasets.trajectories import Trajectory

STATE, OBSERVED = 'observation.state', 'observation.'


@register_template('LeRobot')
class LeRobot(Recorded):
    """A folder of LeRobotDataset, version 2 or 3; each row is an episode. Actions stay as they are, delta or not.

    Attributes:
        action: the column of the actions.
        tolerance: seconds by which a frame may be shown before or after its row; 0 for half of the time of a frame.
    """

    action: str = 'action'
    tolerance: float = 0.0

    def trajectory(self, row: Row) -> Trajectory:
        if 'lerobot' not in row:
            raise SampleError(
                'the row is no episode of LeRobotDataset: give its folder, with meta/info.json in it, as the dataset '
                f'(one of the hub: download it first). Columns of the row: {", ".join(map(str, row)) or "none"}.'
            )
        recording, number = recording_of(row['lerobot']), int(row['episode'])
        columns = recording.rows_of(number)
        numeric = [name for name in columns if name.startswith(OBSERVED) and name not in recording.cameras]
        states = chosen('state', self.states, numeric, [STATE])
        (action,) = chosen('column of actions', [self.action], [name for name in columns if name not in numeric])
        rewards, successes = columns.get('next.reward', []), columns.get('next.success', [])
        names = recording.names_of(action) if action in recording.features else ()
        return Trajectory(
            self.asked(_task(recording, columns)),
            {name: self._frames(recording, number, columns, name) for name in self._cameras(recording)},
            Actions(torch.tensor([_numbers(value) for value in columns[action]], dtype=torch.float64)),
            {name.removeprefix(OBSERVED): [_numbers(value) for value in columns[name]] for name in states},
            [float(_numbers(value)[0]) for value in rewards],
            success=bool(successes[-1]) if successes else None,
            picture_options=self.picture_options(),
            told={'dimensions': list(names)} if names else {},
        )

    def _cameras(self, recording: Recording) -> list[str]:
        return chosen('camera', self.cameras, recording.cameras, recording.cameras)

    def _frames(self, recording: Recording, number: int, columns: dict[str, list[Any]], camera: str) -> list[Any]:
        if camera in columns:
            return columns[camera]
        path, start = recording.video(number, camera)
        tolerance = {'tolerance': self.tolerance} if self.tolerance else {}
        return [{'video': str(path), 'time': start + time, **tolerance} for time in columns['timestamp']]


def _task(recording: Recording, columns: dict[str, list[Any]]) -> str:
    """What was to be done. Raises SampleError where that changed meanwhile."""
    numbers = list(dict.fromkeys(columns.get('task_index', [])))
    if len(numbers) > 1:
        told = ' and '.join(f"'{recording.tasks.get(number, number)}'" for number in numbers[:2])
        raise SampleError(f'the episode has {len(numbers)} tasks, {told}: split it where its task changes.')
    return recording.tasks.get(numbers[0], '') if numbers else ''


def _numbers(value: Any) -> Sequence[float]:
    return value if isinstance(value, list) else [float(value)]
