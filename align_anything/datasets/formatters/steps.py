"""Episodes as plain rows: a line each, with a list of what was seen and done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.actions import STATE
from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, filled, from_json, number, truth
from align_anything.datasets.formatters.recorded import Recorded, chosen
from align_anything.datasets.formatters.turns import PairSample, Sample, outcomes_of
from align_anything.datasets.spoken_actions import actions_of, joined_actions, state_of
from align_anything.datasets.trajectories import Trajectory, turns_of

CAMERA = 'camera'
"""What the one camera of rows is called that have no names for theirs."""
KEYS = ('image', 'images', 'action', STATE, 'reward', 'cost', 'costs')
TASKS = ('instruction', 'task', 'mission', 'language_instruction')
PAIRS = (('better', 'worse'), ('chosen', 'rejected'))
OWN = ('success', 'rewards', 'costs', 'cameras')
"""What the steps themselves tell."""


@register_template('Steps')
class Steps(Recorded):
    """An `instruction` and `steps`, a list of `{'image', 'action', 'state', 'reward', 'cost'}`, with `success`.

    A step has one `image`, or `images` by camera; or the row has a `video`, or `videos` by camera, whose frame n was
    seen before step n. Two episodes from one start, to be compared, are `better` and `worse` (`chosen` and `rejected`);
    what was seen first is taken from the better one.
    """

    def trajectory(self, row: Row) -> Trajectory:
        return self._episode(row, row)

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        names = next((pair for pair in PAIRS if all(filled(raw_sample, name) for name in pair)), None)
        if names is None:
            raise SampleError("the row has no two episodes to compare, in columns 'better' and 'worse'.")
        episodes = [self._named(raw_sample, name) for name in names]
        (better, told), (worse, others) = (turns_of(episode) for episode in episodes)
        meta = {name: value for name, value in told.items() if name in others and others[name] == value}
        opening = self.opening()
        return [*opening, *better], [*opening, better[0], *worse[1:]], meta

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        paired = any(all(filled(raw_sample, name) for name in pair) for pair in PAIRS)
        if not paired or filled(raw_sample, 'steps'):
            return super().format_supervised_sample(raw_sample)
        better, _, meta = self.format_preference_sample(raw_sample)
        return better, meta

    def _named(self, row: Row, name: str) -> Trajectory:
        given = from_json(row[name])
        episode = {'steps': given} if isinstance(given, (list, tuple)) else given
        if not isinstance(episode, Mapping):
            raise SampleError(f"column '{name}' should be an episode, a record with steps, or a list of them.")
        return self._episode(row, episode)

    def _episode(self, row: Row, episode: Mapping[str, Any]) -> Trajectory:
        steps = from_json(episode.get('steps'))
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, Mapping) for step in steps):
            columns = ', '.join(map(str, episode)) or 'none'
            raise SampleError(f"the row has no list of records as 'steps'. Its columns: {columns}.")
        if not steps:
            raise SampleError('the episode has no steps.')
        for index, step in enumerate(steps):
            unknown = [str(key) for key, value in step.items() if value is not None and key not in KEYS]
            if unknown:
                told = ', '.join(unknown)
                raise SampleError(f'step {index} has {told}, which nothing reads. Keys are: {", ".join(KEYS)}.')
        actions = joined_actions([actions_of(f'step {index}', step.get('action')) for index, step in enumerate(steps)])
        if len(actions) != len(steps):
            raise SampleError('each step should have one action, but some have chunks of several: write them as steps.')
        said = next((episode.get(name) or row.get(name) for name in TASKS if episode.get(name) or row.get(name)), '')
        success = episode.get('success', row.get('success'))
        beside = {name: value for name, value in outcomes_of(row).items() if name not in OWN}
        return Trajectory(
            self.asked(str(said)),
            self._pictures(episode, steps),
            actions,
            self._states(steps),
            _each(steps, 'reward'),
            _costs(steps),
            None if success is None else truth(success, "'success'"),
            self.picture_options(),
            beside,
        )

    def _pictures(self, episode: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        videos = _by_camera(episode.get('videos') or episode.get('video'))
        if videos:
            names = chosen('camera', self.cameras, videos, list(videos))
            # Located with the row, so that a missing frame costs the row alone.
            count = len(steps)
            return {
                name: [{'video': videos[name], 'frame': index, 'frames': [count, count + 1]} for index in range(count)]
                for name in names
            }
        shown = [_by_camera(step.get('images') or step.get('image')) for step in steps]
        if not any(shown):
            return {}
        names = chosen('camera', self.cameras, shown[0], list(shown[0]))
        lacking = next(((i, name) for i, found in enumerate(shown) for name in names if name not in found), None)
        if lacking is not None:
            raise SampleError(f"step {lacking[0]} has no picture of camera '{lacking[1]}'.")
        return {name: [found[name] for found in shown] for name in names}

    def _states(self, steps: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, ...]]]:
        told = [step.get(STATE) for step in steps]
        found = [{} if state is None else state_of(f'step {index}', state) for index, state in enumerate(told)]
        names = chosen('state', self.states, found[0], list(found[0]))
        lacking = next(((i, name) for i, state in enumerate(found) for name in names if name not in state), None)
        if lacking is not None:
            raise SampleError(f"step {lacking[0]} has no state '{lacking[1]}'.")
        return {name: [state[name] for state in found] for name in names}


def _by_camera(source: Any) -> dict[str, Any]:
    """Media by camera, one without a name under `CAMERA`."""
    if source is None:
        return {}
    is_one = not isinstance(source, Mapping) or {'bytes', 'path', 'video', 'hdf5'} & source.keys()
    return {CAMERA: source} if is_one else {name: item for name, item in source.items() if item is not None}


def _each(steps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    if not any(step.get(name) is not None for step in steps):
        return []
    return [number(step.get(name) or 0.0, f"'{name}' of step {index}") for index, step in enumerate(steps)]


def _costs(steps: Sequence[Mapping[str, Any]]) -> list[float]:
    """What each step cost: a number, or the sum of several by name."""
    if not any(step.get('costs') is not None for step in steps):
        return _each(steps, 'cost')
    several = [step.get('costs') or {} for step in steps]
    return [sum(number(value, f"cost '{name}'") for name, value in costs.items()) for costs in several]
