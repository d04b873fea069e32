"""What the actions and states of recorded episodes are like: one pass over the rows, nothing decoded, nothing kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from align_anything.core.actions import STATE, Normalization, Statistics
from align_anything.core.distributed import all_gather_object, rank, world_size
from align_anything.core.errors import DataError
from align_anything.core.files import atomic_write_json
from align_anything.core.store import digest
from align_anything.core.types import ACTION, Conversation, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.running_statistics import Running
from align_anything.datasets.source_loading import source_names

FILE = 'action_statistics.json'


@dataclass
class Seen:
    """What the rows of a dataset do, and what bodies were like, by the name of the dataset.

    Attributes:
        episodes: rows with actions.
        skipped: rows that make no episode.
        names: how often each named action was done.
        values: numbers of actions.
        states: numbers of states, by dataset and name.
        told: what templates tell once: `dimensions`, `action_names`, `cameras`, each as rows had it.
        no_ops: steps that did nothing and were left out.
        content: sum of digests of all that was done, which tells the data apart whatever their order.
    """

    episodes: int = 0
    skipped: int = 0
    names: Counter[str] = field(default_factory=Counter)
    values: dict[str, Running] = field(default_factory=dict)
    states: dict[str, dict[str, Running]] = field(default_factory=dict)
    told: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    no_ops: int = 0
    content: int = 0

    def add(self, conversation: Conversation, meta: Mapping[str, Any], dataset: str) -> None:
        """Takes an episode, its media not decoded."""
        parts = [part for message in conversation for part in message['content'] if part['type'] == ACTION]
        if not parts:
            return
        self.episodes += 1
        self.no_ops += int(meta.get('no_ops_left_out', 0))
        done = [part[ACTION] for part in parts]
        self.content = (self.content + int(digest(done)[:15], 16)) % 2**60
        self.names.update(name for actions in done for name in actions.names)
        numbers = [actions.values for actions in done if actions.values is not None]
        if numbers:
            self.values.setdefault(dataset, Running()).add(torch.cat(numbers))
        states: dict[str, list[Sequence[float]]] = {}
        for message in conversation:
            for name, values in message.get(STATE, {}).items():
                states.setdefault(name, []).append(values)
        for name, values in states.items():
            of_name = self.states.setdefault(dataset, {}).setdefault(name, Running())
            of_name.add(torch.tensor(values, dtype=torch.float64))
        for key in ('dimensions', 'action_names', 'cameras'):
            if meta.get(key):
                self.told.setdefault(key, set()).add(tuple(meta[key]))

    def merge(self, other: Seen) -> None:
        """Takes what another rank has seen."""
        for key in ('episodes', 'skipped', 'no_ops'):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.content = (self.content + other.content) % 2**60
        self.names += other.names
        for dataset, running in other.values.items():
            self.values.setdefault(dataset, Running()).merge(running)
        for dataset, states in other.states.items():
            for name, running in states.items():
                self.states.setdefault(dataset, {}).setdefault(name, Running()).merge(running)
        for key, found in other.told.items():
            self.told.setdefault(key, set()).update(found)

    def one(self, key: str) -> tuple[str, ...]:
        """Returns what all rows tell of `dimensions`, `action_names` or `cameras`; nothing where none does.

        Raises DataError where they tell different things.
        """
        found = sorted(self.told.get(key, ()))
        if len(found) > 1:
            raise DataError(
                f'the {key.replace("_", " ")} of some rows are {", ".join(found[0])}, and those of others '
                f'{", ".join(found[1])}: a policy has the same ones everywhere. Choose them by the template options.'
            )
        return found[0] if found else ()

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON."""
        return {
            'content': f'{self.content:015x}',
            'episodes': self.episodes,
            'skipped': self.skipped,
            'no_ops_left_out': self.no_ops,
            'names': dict(sorted(self.names.items())),
            'actions': {name: asdict(running.summary()) for name, running in sorted(self.values.items())},
            'states': {
                dataset: {name: asdict(running.summary()) for name, running in sorted(states.items())}
                for dataset, states in sorted(self.states.items())
            },
        }

    def written(self) -> str:
        """Returns a line that says what was seen, and how exactly."""
        named = f'; {sum(self.names.values())} named actions of {len(self.names)} kinds' if self.names else ''
        exact = [running.summary() for running in self.values.values()]
        steps = sum(found.steps for found in exact)
        how = 'exact' if all(found.exact for found in exact) else f'to {max(max(found.width) for found in exact):.2g}'
        numbers = f'; {steps} steps of numbers, percentiles {how}' if exact else ''
        left_out = f'; {self.no_ops} steps that do nothing left out' if self.no_ops else ''
        return f'{self.episodes} episodes{named}{numbers}{left_out}'


def seen_in(rows: ExampleDataset, names: Sequence[str] = (), limit: int | None = None) -> Seen:
    """Returns what all rows do, each rank looking at its share of them. Every rank calls it and gets the same.

    Nothing is decoded. Each source counts as the dataset that `names` calls it, without them as that of its own name;
    those of one name count as one. With a `limit` only the first so many rows are looked at.
    Raises DataError for a stream, which is read once, in training.
    """
    if any(source.streamed for source in rows.sources):
        raise DataError('a stream tells nothing of its actions beforehand: set data_cfgs.streaming: False.')
    names, mine = names or source_names(rows.sources), Seen()
    for number in range(rank(), min(len(rows), limit or len(rows)), world_size()):
        made = rows.recorded(number)
        if isinstance(made, Skipped):
            mine.skipped += 1
            continue
        conversations, meta, source = made
        try:
            for conversation in conversations:
                mine.add(conversation, meta, names[source])
        except DataError as error:
            raise DataError(f'{rows.name_of(number)}: {error}') from error
    everyones = Seen()
    for own in all_gather_object(mine):
        everyones.merge(own)
    return everyones


def write_seen(folder: str | Path, seen: Seen) -> Path:
    """Writes what was seen into the folder of a run; returns the file."""
    path = Path(folder) / FILE
    atomic_write_json(path, seen.to_json())
    return path


def published_statistics(path: str | Path, normalization: Normalization) -> dict[str, Statistics]:
    """Returns the statistics of actions that others published, by dataset.

    Takes `meta/stats.json` of LeRobotDataset, whose dataset is called by its folder, and `dataset_statistics.json` of
    OpenVLA (also `norm_stats` in a config.json), each with what `normalization` needs.

    Raises DataError for a file that is neither, or lacks some of it.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read as JSON ({error}).') from error
    if isinstance(found, Mapping) and isinstance(found.get('norm_stats'), Mapping):
        found = found['norm_stats']
    if isinstance(found, Mapping) and _is_action(found.get(ACTION)):
        name = path.resolve().parent.parent.name if path.parent.name == 'meta' else path.stem
        return {name: _statistics(path, name, found[ACTION], normalization)}
    if isinstance(found, Mapping):
        several = {str(name): own[ACTION] for name, own in found.items() if isinstance(own, Mapping) and ACTION in own}
        if several:
            return {name: _statistics(path, name, own, normalization) for name, own in several.items()}
    raise DataError(f'{path}: has no statistics of actions, as stats.json of LeRobot and norm_stats of OpenVLA have.')


def _is_action(found: Any) -> bool:
    return isinstance(found, Mapping) and {'mean', 'std'} <= found.keys()


def _statistics(path: Path, name: str, found: Mapping[str, Any], normalization: Normalization) -> Statistics:
    ends = ('q01', 'q99') if normalization == 'quantiles' else ('min', 'max')
    missing = [key for key in (*ends, 'mean', 'std') if key not in found]
    if missing:
        raise DataError(
            f"{path}: the statistics of '{name}' have no {' and '.join(missing)}, which {normalization} needs. They "
            f'have: {", ".join(map(str, found))}.'
        )
    columns = [tuple(float(value) for value in found[key]) for key in (*ends, 'mean', 'std')]
    mask = tuple(bool(value) for value in found.get('mask') or [True] * len(columns[0]))
    if len({len(column) for column in (*columns, mask)}) > 1:
        raise DataError(f"{path}: the statistics of '{name}' have columns of different lengths.")
    return Statistics(*columns, mask)
