"""Small recordings of a moving square, in the layouts that recordings of robots are published in.

Whoever reads them finds the same pictures, actions and states everywhere, see `Episode`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align_anything.core.types import Video
from align_anything.datasets.formatters.chores_tasks import STRETCH_ACTIONS
from align_anything.datasets.media.writing import mp4

SIDE = 32
CAMERAS = ('front', 'wrist')
DIMENSIONS = ('x', 'y', 'gripper')
FPS = 10
NAMED = ('move_ahead', 'rotate_left', 'move_ahead', 'move_ahead', 'pickup')
"""What bodies with named actions do, again and again; the last thing is always `done`."""


@dataclass(frozen=True)
class Episode:
    """What is recorded of one episode.

    Attributes:
        number: of the episode.
        steps: how many actions it has; one picture more shows the end.
        instruction: what was to be done.
        shift: how many actions are recorded without a picture before them, for recordings that are wrong.
    """

    number: int
    steps: int
    instruction: str = 'push the square to the right'
    shift: int = field(default=0)

    def frames(self, camera: str) -> np.ndarray:
        """Returns what a camera saw, `(steps + 1, SIDE, SIDE, 3)` uint8: a white square on a ground that tells which.

        Its upper left quarter is darker than the rest, so that it has a right way up; the ground brightens by the step.
        """
        pictures = np.zeros((self.steps + 1, SIDE, SIDE, 3), np.uint8)
        pictures += (60 + 40 * CAMERAS.index(camera) + 4 * np.arange(self.steps + 1, dtype=np.uint8))[
            :, None, None, None
        ]
        pictures[:, : SIDE // 2, : SIDE // 2] //= 2
        for step in range(self.steps + 1):
            left = min(2 * step, SIDE - 8)
            pictures[step, SIDE - 8 :, left : left + 8] = 250
        return pictures

    @property
    def actions(self) -> np.ndarray:
        """What was done, `(steps, 3)` float32: moves of the arm, and a gripper that closes half way."""
        random = np.random.default_rng(self.number)
        moves = random.uniform(-1, 1, (self.steps, 2))
        closes = np.where(np.arange(self.steps) < self.steps // 2, -1.0, 1.0)
        return np.concatenate([moves, closes[:, None]], axis=1).astype(np.float32)

    @property
    def names(self) -> list[str]:
        """What was done where actions have names."""
        return [NAMED[step % len(NAMED)] for step in range(self.steps - 1)] + ['done']

    @property
    def state(self) -> np.ndarray:
        """Where the arm was before each step, `(steps, 2)` float32."""
        return np.stack([np.arange(self.steps) / 10, np.full(self.steps, self.number)], axis=1).astype(np.float32)


def episodes(*steps: int) -> list[Episode]:
    """Returns episodes of so many steps each."""
    return [Episode(number, length) for number, length in enumerate(steps)]


def _video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mp4(Video(frames, np.arange(len(frames)) / FPS, FPS)))


def write_steps(folder: str | Path, made: Sequence[Episode], *, named: bool = False, videos: bool = False) -> Path:
    """Writes `episodes.jsonl` for the template Steps, with pictures or videos beside it; returns the file."""
    from PIL import Image

    folder, lines = Path(folder), []
    for episode in made:
        done = episode.names if named else episode.actions.astype(float).round(6).tolist()
        steps: list[dict[str, Any]] = []
        for step in range(episode.steps):
            shown = {}
            for camera in () if videos else CAMERAS:
                file = folder / f'{episode.number}_{camera}_{step}.png'
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(episode.frames(camera)[step]).save(file)
                shown[camera] = file.name
            row = {'action': done[step], 'state': {'arm': episode.state[step].astype(float).tolist()}}
            steps.append({**row, 'reward': float(step == episode.steps - 1), **({'images': shown} if shown else {})})
        if videos:
            for camera in CAMERAS:
                _video(folder / f'{episode.number}_{camera}.mp4', episode.frames(camera))
        files = {'videos': {camera: f'{episode.number}_{camera}.mp4' for camera in CAMERAS}} if videos else {}
        told = {'instruction': episode.instruction, 'success': True, 'seed': episode.number, 'dimensions': DIMENSIONS}
        lines.append(json.dumps({**told, **files, 'steps': steps}))
    file = folder / 'episodes.jsonl'
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return file


def write_chores(
    folder: str | Path,
    made: Sequence[Episode],
    *,
    split: str = 'train',
    task: Mapping[str, Any] | None = None,
    short_names: bool = True,
) -> Path:
    """Writes a folder of CHORES, each episode in a house of its own; returns it.

    An episode with a `shift` has so many actions too many.
    """
    import h5py

    folder, short = Path(folder), {name: key for key, name in STRETCH_ACTIONS.items()}
    listed = {}
    for episode in made:
        house, sub_house = f'{episode.number:06d}', str(episode.number % 3)
        listed[house] = [sub_house]
        place = folder / split / house
        for view, camera in zip(('navigation', 'manipulation'), CAMERAS, strict=True):
            _video(place / f'raw_{view}_camera__{sub_house}.mp4', episode.frames(camera))
        names = ['', *episode.names, *['done'] * episode.shift]
        told = task or {'task_type': 'PickupType', 'synsets': ['apple.n.01'], 'extras': {}}
        with h5py.File(place / 'hdf5_sensors.hdf5', 'w') as file:
            group = file.create_group(sub_house)
            group['last_action_str'] = _padded([short.get(name, name) if short_names else name for name in names])
            group['templated_task_spec'] = _padded([json.dumps(told)] * len(names))
            group['last_agent_location'] = np.arange(6.0)[None].repeat(len(names), 0)
            group['an_object_is_in_hand'] = np.array([[float(name == 'done')] for name in names])
            box = group.create_group('nav_task_relevant_object_bbox')
            box['oids_as_bytes'] = _padded([str(['apple_1', 'apple_2'])] * len(names))
            for corner, values in zip(
                ('min_cols', 'min_rows', 'max_cols', 'max_rows'), ((1, 5), (2, 5), (3, 9), (4, 8)), strict=True
            ):
                box[corner] = np.array([values] * len(names), dtype=np.float64)
    (folder / f'house_id_to_sub_house_id_{split}.json').write_text(json.dumps(listed))
    return folder


def _padded(texts: Sequence[str]) -> np.ndarray:
    """Texts as rows of bytes, `(texts, longest)` uint8."""
    longest = max(1, *(len(text.encode()) for text in texts))
    return np.array([text.encode() for text in texts], dtype=f'S{longest}').view(np.uint8).reshape(len(texts), longest)


def write_lerobot(
    folder: str | Path, made: Sequence[Episode], *, version: int = 3, drift: float = 0.0, pictures: str = 'video'
) -> Path:
    """Writes a folder of LeRobotDataset, version 2 (2.1) or 3; returns it.

    Args:
        drift: seconds by which the clock of the rows runs ahead in each step.
        pictures: `video`, or `image` for pictures in the tables.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = Path(folder)
    (folder / 'meta').mkdir(parents=True, exist_ok=True)
    keys = {camera: f'observation.images.{camera}' for camera in CAMERAS}
    tasks = list(dict.fromkeys(episode.instruction for episode in made))
    shape = [SIDE, SIDE, 3]
    features: dict[str, Any] = {
        **{key: {'dtype': pictures, 'shape': shape, 'names': ['height', 'width', 'channels']} for key in keys.values()},
        'observation.state': {'dtype': 'float32', 'shape': [2], 'names': {'motors': ['height', 'number']}},
        'action': {'dtype': 'float32', 'shape': [3], 'names': list(DIMENSIONS)},
        'timestamp': {'dtype': 'float32', 'shape': [1], 'names': None},
    }
    info = {
        'codebase_version': 'v3.0' if version == 3 else 'v2.1',
        'fps': FPS,
        'features': features,
        'total_episodes': len(made),
        'chunks_size': 1000,
        'splits': {'train': f'0:{len(made)}'},
        'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
        if version == 3
        else 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
        if version == 3
        else 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4',
    }
    (folder / 'meta/info.json').write_text(json.dumps(info))
    tables, known, start = [], [], 0
    for episode in made:
        steps = np.arange(episode.steps)
        columns: dict[str, Any] = {
            'observation.state': list(episode.state),
            'action': list(episode.actions),
            'timestamp': (steps / FPS + drift * steps).astype(np.float32),
            'frame_index': steps,
            'episode_index': np.full(episode.steps, episode.number),
            'index': start + steps,
            'task_index': np.full(episode.steps, tasks.index(episode.instruction)),
            'next.reward': (steps == episode.steps - 1).astype(np.float32),
        }
        if pictures == 'image':
            columns |= {key: _images(episode.frames(camera)[:-1]) for camera, key in keys.items()}
        tables.append(pa.table(columns))
        known.append(
            {
                'episode_index': episode.number,
                'tasks': [episode.instruction],
                'length': episode.steps,
                'data/chunk_index': 0,
                'data/file_index': 0,
                'dataset_from_index': start,
                'dataset_to_index': start + episode.steps,
                **{f'videos/{key}/{name}_index': 0 for key in keys.values() for name in ('chunk', 'file')},
                **{f'videos/{key}/from_timestamp': start / FPS for key in keys.values()},
                **{f'videos/{key}/to_timestamp': (start + episode.steps) / FPS for key in keys.values()},
            }
        )
        start += episode.steps
    if version == 3:
        (folder / 'data/chunk-000').mkdir(parents=True)
        with parquet.ParquetWriter(folder / 'data/chunk-000/file-000.parquet', tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        (folder / 'meta/episodes/chunk-000').mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(known), folder / 'meta/episodes/chunk-000/file-000.parquet')
        rows = {'task_index': list(range(len(tasks))), '__index_level_0__': tasks}
        parquet.write_table(pa.table(rows), folder / 'meta/tasks.parquet')
        for camera, key in keys.items() if pictures == 'video' else ():
            shown = np.concatenate([episode.frames(camera)[:-1] for episode in made])
            _video(folder / f'videos/{key}/chunk-000/file-000.mp4', shown)
        return folder
    (folder / 'data/chunk-000').mkdir(parents=True)
    for episode, table in zip(made, tables, strict=True):
        parquet.write_table(table, folder / f'data/chunk-000/episode_{episode.number:06d}.parquet')
        for camera, key in keys.items() if pictures == 'video' else ():
            _video(folder / f'videos/chunk-000/{key}/episode_{episode.number:06d}.mp4', episode.frames(camera)[:-1])
    lines = [{name: row[name] for name in ('episode_index', 'tasks', 'length')} for row in known]
    (folder / 'meta/episodes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    numbered = ({'task_index': number, 'task': task} for number, task in enumerate(tasks))
    (folder / 'meta/tasks.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in numbered))
    return folder


def _images(frames: np.ndarray) -> list[dict[str, Any]]:
    from PIL import Image

    from align_anything.datasets.media.writing import png

    return [{'bytes': png(Image.fromarray(frame)), 'path': None} for frame in frames]


def write_libero(folder: str | Path, made: Sequence[Episode], *, pauses: Sequence[int] = ()) -> Path:
    """Writes a file of LIBERO with pictures upside down, as its simulator makes them; returns it.

    In the steps `pauses` of each demonstration nothing is done.
    """
    import h5py

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'KITCHEN_SCENE3_push_the_square_to_the_right_demo.hdf5'
    with h5py.File(path, 'w') as file:
        data = file.create_group('data')
        for episode in made:
            group = data.create_group(f'demo_{episode.number}')
            actions = episode.actions.astype(np.float64)
            for step in pauses:
                actions[step, :-1] = 0.0
                actions[step, -1] = actions[step - 1, -1]
            group['actions'] = actions
            group['rewards'] = (np.arange(episode.steps) == episode.steps - 1).astype(np.uint8)
            for name, camera in (('agentview_rgb', 'front'), ('eye_in_hand_rgb', 'wrist')):
                group[f'obs/{name}'] = episode.frames(camera)[:-1, ::-1, ::-1]
            group['obs/ee_states'] = episode.state
            group['obs/joint_states'] = np.zeros((episode.steps, 7))
    return path


def write_aloha(folder: str | Path, made: Sequence[Episode], *, compressed: bool = False) -> Path:
    """Writes a file of ALOHA for each episode; returns the folder. `compressed` keeps the pictures as files in rows."""
    import h5py

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for episode in made:
        with h5py.File(folder / f'episode_{episode.number}.hdf5', 'w') as file:
            file['action'] = episode.actions
            file['observations/qpos'] = episode.state
            file['observations/qvel'] = np.zeros_like(episode.state)
            for camera in CAMERAS:
                frames = episode.frames(camera)[:-1]
                file[f'observations/images/{camera}'] = _compressed(frames) if compressed else frames
    return folder


def _compressed(frames: np.ndarray) -> np.ndarray:
    """Pictures as files, `(frames, longest)` uint8, padded with zeros."""
    files = [np.frombuffer(image['bytes'], np.uint8) for image in _images(frames)]
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, content in zip(rows, files, strict=True):
        row[: len(content)] = content
    return rows
