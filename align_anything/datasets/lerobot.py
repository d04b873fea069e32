"""Folders of LeRobotDataset, versions 2 and 3: what they declare, and the frames of an episode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError, SampleError

INFO = 'meta/info.json'
FIELD = re.compile(r'\{(\w+)(?::0?(\d+)d)?\}')
"""A field of a path, such as `{episode_index:06d}`. Nothing else is understood: the text is that of a dataset."""
V3_VIDEOS = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
V3_DATA = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
V3_EPISODES = 'meta/episodes'
PICTURES = ('video', 'image')
"""Types of features that are pictures: in files of their own, or beside the numbers."""
KNOWN_FOLDERS = 8


@dataclass(frozen=True)
class Recording:
    """What a folder declares.

    Attributes:
        root: the folder.
        version: `2` or `3`.
        fps: frames per second.
        features: the columns by name, each `{'dtype', 'shape', 'names'}`.
        paths: of tables and videos, with fields in braces.
        chunk_size: episodes of a folder, in version 2.
        episodes: what is known of each, in the order of their numbers.
        tasks: what was to be done, by number.
        splits: ranges of episodes by name.
    """

    root: Path
    version: int
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    paths: Mapping[str, str]
    chunk_size: int
    episodes: tuple[Mapping[str, Any], ...]
    tasks: Mapping[int, str]
    splits: Mapping[str, str]

    @property
    def cameras(self) -> list[str]:
        """The features that are pictures, in their order."""
        return [name for name, feature in self.features.items() if feature.get('dtype') in PICTURES]

    def names_of(self, feature: str) -> tuple[str, ...]:
        """Returns what the numbers of a feature are called; nothing where they have no names."""
        names = self.features[feature].get('names')
        if isinstance(names, Mapping):
            names = [name for some in names.values() for name in (some if isinstance(some, list) else [some])]
        count = (self.features[feature].get('shape') or [0])[0]
        return tuple(map(str, names)) if isinstance(names, list) and len(names) == count else ()

    def table(self, number: int) -> Path:
        """Returns the file with the numbers of an episode."""
        return self.root / _filled(self.paths['data'], self._fields(number, 'data'))

    def video(self, number: int, camera: str) -> tuple[Path, float]:
        """Returns the file with the pictures of an episode, and at which second of it the episode begins."""
        fields = {**self._fields(number, f'videos/{camera}'), 'video_key': camera}
        start = self.episodes[number].get(f'videos/{camera}/from_timestamp') or 0.0
        return self.root / _filled(self.paths['video'], fields), float(start)

    def rows_of(self, number: int) -> dict[str, list[Any]]:
        """Returns the columns of an episode's frames. Raises SampleError where the table has not as many of them."""
        path = self.table(number)
        columns = _columns(path, self.episodes[number]['episode_index'])
        count, wanted = len(columns.get('frame_index', ())), self.episodes[number].get('length')
        if not count or (wanted is not None and count != wanted):
            raise SampleError(f"'{path}' has {count} frames of episode {number}, which should have {wanted or 'some'}.")
        return columns

    def _fields(self, number: int, what: str) -> dict[str, Any]:
        episode = self.episodes[number]
        index = episode['episode_index']
        own = {'episode_index': index, 'episode_chunk': index // self.chunk_size, 'total_episodes': len(self.episodes)}
        return {**own, **{key: episode.get(f'{what}/{key}') for key in ('chunk_index', 'file_index')}}


def is_lerobot(folder: Path) -> bool:
    """Tells whether a folder is one."""
    return (folder / INFO).is_file()


def recording_of(folder: str | Path) -> Recording:
    """Returns what a folder declares; it is read once. Raises DataError for one that cannot be read."""
    path = Path(folder)
    if not is_lerobot(path):
        raise DataError(f"'{path}' has no {INFO}, so it is no folder of LeRobotDataset.")
    return _read(str(path), *_version(path / INFO))


@lru_cache(maxsize=KNOWN_FOLDERS)
def _read(folder: str, *version: int) -> Recording:
    root = Path(folder)
    try:
        info = json.loads((root / INFO).read_text(encoding='utf-8'))
        told = str(info.get('codebase_version', 'v2.1'))
        major = int(told.lstrip('v').partition('.')[0])
        if major not in (2, 3):
            raise DataError(f"'{root}' is LeRobotDataset {told}; versions 2 and 3 can be read. Convert it.")
        episodes = _episodes_of_3(root) if major == 3 else list(_lines(root / 'meta/episodes.jsonl'))
        tasks = (
            _tasks_of_3(root)
            if major == 3
            else {int(row['task_index']): str(row['task']) for row in _lines(root / 'meta/tasks.jsonl')}
        )
        return Recording(
            root,
            major,
            float(info['fps']),
            info['features'],
            {'data': info.get('data_path') or V3_DATA, 'video': info.get('video_path') or V3_VIDEOS},
            int(info.get('chunks_size') or 1000),
            tuple(sorted(episodes, key=lambda episode: episode['episode_index'])),
            tasks,
            dict(info.get('splits') or {}),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"'{root}' cannot be read as LeRobotDataset: {type(error).__name__}: {error}.") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding='utf-8').splitlines():
        if line.strip():
            yield json.loads(line)


def _episodes_of_3(root: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    files = sorted((root / V3_EPISODES).glob('chunk-*/file-*.parquet'))
    if not files:
        raise DataError(f"'{root / V3_EPISODES}' has no tables of episodes.")
    found: list[dict[str, Any]] = []
    for file in files:
        # Statistics of each episode are most of the table.
        wanted = [name for name in parquet.read_schema(file).names if not name.startswith('stats/')]
        found += parquet.read_table(file, columns=wanted).to_pylist()
    return found


def _tasks_of_3(root: Path) -> dict[int, str]:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(root / 'meta/tasks.parquet').to_pylist()
    # pandas keeps what a table is indexed by in a column of its own name.
    return {int(row.pop('task_index')): str([*row.values()][0]) for row in rows}


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise SampleError(f"'{path}' does not exist.") from error
    return status.st_mtime_ns, status.st_size


def _columns(path: Path, episode: int) -> dict[str, list[Any]]:
    """The columns of the frames of an episode; where each has a group of rows of its own, nothing else is read."""
    import pyarrow.parquet as parquet

    _version(path)
    try:
        table = parquet.read_table(path, filters=[('episode_index', '==', episode)])
    except (OSError, ValueError) as error:
        raise SampleError(f"'{path}' cannot be read as parquet: {error}.") from error
    return {name: table[name].to_pylist() for name in table.column_names}


def _filled(path: str, fields: Mapping[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        found = fields.get(match[1])
        if found is None:
            raise SampleError(f"the path '{path}' of the dataset has a field '{match[1]}', which nothing tells.")
        return str(found).zfill(int(match[2] or 0))

    filled = FIELD.sub(value, path)
    if '..' in Path(filled).parts or Path(filled).is_absolute():
        raise SampleError(f"the path '{path}' of the dataset leads out of its folder.")
    return filled
