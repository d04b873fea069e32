"""Files and folders of recorded episodes as rows: one for each episode, whose files are read with it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.lerobot import is_lerobot, recording_of
from align_anything.datasets.media.frames import open_hdf5
from align_anything.datasets.rows import Row, Rows

HOUSES = re.compile(r'house_id_to_sub_house_id_(.+)\.json')
"""The files of CHORES that list the episodes of a split."""
ORDER = 123
"""The seed by which align-anything orders the episodes of CHORES, so that the first so many are the same ones."""
CHORES_VIDEO = 'raw_{}_camera__{}.mp4'
VIEWS = ('navigation', 'manipulation')


class EpisodeRows:
    """Rows that say where an episode is, and what reports call each."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        self._rows, self._names = [json.dumps(row) for row in rows], list(names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return json.loads(self._rows[index])

    def row_name(self, index: int) -> str:
        return self._names[index]


def recorded_folder(folder: Path) -> dict[str, Callable[[], Rows]] | None:
    """Returns the splits of a folder of CHORES or of LeRobotDataset; None for any other.

    Raises DataError for one that cannot be read.
    """
    if not folder.is_dir():
        return None
    # Media of rows are looked for beside the data, unless their paths are whole.
    folder = folder.absolute()
    listed = sorted(folder.glob('house_id_to_sub_house_id_*.json'))
    houses = {HOUSES.fullmatch(file.name)[1]: file for file in listed}
    if houses:
        return {split: partial(_chores, folder / split, file) for split, file in houses.items()}
    if is_lerobot(folder):
        return _lerobot(folder)
    return None


def _chores(folder: Path, listed: Path) -> Rows:
    try:
        houses = json.loads(listed.read_text(encoding='utf-8'))
        episodes = [(house, str(sub_house)) for house in sorted(houses) for sub_house in houses[house]]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f'{listed}: cannot be read as sub-houses by house ({error}).') from error
    order = sorted(houses)
    random.Random(ORDER).shuffle(order)
    of_house = {house: [episode for episode in episodes if episode[0] == house] for house in order}
    episodes = [episode for house in order for episode in of_house[house]]
    random.Random(ORDER).shuffle(episodes)
    rows = [
        {
            'house': house,
            'sub_house': sub_house,
            'sensors': str(folder / house / 'hdf5_sensors.hdf5'),
            'videos': {
                f'raw_{view}_camera': str(folder / house / CHORES_VIDEO.format(view, sub_house)) for view in VIEWS
            },
        }
        for house, sub_house in episodes
    ]
    return EpisodeRows(rows, [f'{folder / house}:{sub_house}' for house, sub_house in episodes])


def _lerobot(folder: Path) -> dict[str, Callable[[], Rows]]:
    recording = recording_of(folder)
    count = len(recording.episodes)
    splits = {name: _range(folder, str(span), count) for name, span in recording.splits.items()}
    return {name: partial(_episodes, folder, span) for name, span in (splits or {'train': range(count)}).items()}


def _range(folder: Path, span: str, count: int) -> range:
    found = re.fullmatch(r'(\d*):(\d*)', span)
    if found is None:
        raise DataError(f"'{folder}' has a split of the episodes '{span}', which should be first:last.")
    return range(int(found[1] or 0), min(int(found[2] or count), count))


def _episodes(folder: Path, span: range) -> Rows:
    return EpisodeRows(
        [{'lerobot': str(folder), 'episode': number} for number in span], [f'{folder}:{number}' for number in span]
    )


def hdf5_rows(files: Sequence[Path]) -> Rows:
    """Returns a row for each demonstration in HDF5 files: for each group in `data`, else for each file.

    One that cannot be read is a row too, which it costs with the reason. Raises DataError where there is no h5py.
    """
    found = [(file.absolute(), name) for file in files for name in _demonstrations(file)]
    rows = [{'hdf5': str(file), 'episode': name} for file, name in found]
    return EpisodeRows(rows, [f'{file}:{name}' if name else str(file) for file, name in found])


def _demonstrations(path: Path) -> Iterator[str]:
    try:
        with open_hdf5(str(path)) as file:
            import h5py

            names = list(file['data']) if file.get('data', getclass=True) is h5py.Group else ['']
    except (SampleError, OSError, RuntimeError, LookupError):  # h5py tells damage by any of these
        names = ['']
    yield from sorted(names, key=_by_number)


def _by_number(name: str) -> list[Any]:
    # demo_10 comes after demo_9.
    return [int(word) if word.isdigit() else word for word in re.split(r'(\d+)', name)]
