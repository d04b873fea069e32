"""The stage before training in which frozen modules make what training reads: once, on the device, by all ranks.

Each rank makes its share of the rows and stores it every half minute, so a run that was killed goes on where it stood,
and later runs find everything. While it trains, data workers only read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from align_anything.configs.schema import RunCfgs
from align_anything.core.contents import Known
from align_anything.core.distributed import all_gather_object, all_reduce_sum
from align_anything.core.errors import SampleError
from align_anything.core.logging import get_logger
from align_anything.core.store import TensorStore
from align_anything.core.types import Conversation, Example, Skipped, map_tensors
from align_anything.datasets.dataset import ExampleDataset, Task, TaskAround
from align_anything.datasets.media.known import NOTED, KnownMedia
from align_anything.reporting.console import StageConsole
from align_anything.trainers.runs.data import loader_in_order
from align_anything.trainers.runs.output_folder import require_shared

logger = get_logger(__name__)

T = TypeVar('T')
Examples = list[Example]

PACK_SECONDS = 30.0
"""What a rank has made is written after so long: as much is lost when it is killed."""
PACK_BYTES = 2**26


class Maker(Protocol[T]):
    """What makes entries of a store out of the rows of a dataset, collated to batches `T`.

    Attributes:
        name: what its entries are, for the progress bar and the log.
        store: where they go; its fingerprint is that of the maker.
    """

    name: str
    store: TensorStore

    def keys(self, example: Example) -> list[str]:
        """Returns the keys of what is made of a row, by which training finds it. It runs in data workers."""

    def make(
        self, batch: T, keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns the entries of a batch, on the CPU; `keys` are those of its rows, in their order.

        What cannot be made is left out, and what is not `missing` may be.

        All ranks call it together as soon as one of them lacks something, so a batch may have no rows.
        """


def prepare(
    makers: Sequence[Maker[T]],
    dataset: ExampleDataset,
    collate: Callable[[list[Example], list[Skipped]], T],
    cfgs: RunCfgs,
    device: torch.device,
) -> None:
    """Stores what `makers` make of the rows of `dataset` and is not stored yet, in one pass. Every rank calls it.

    Rows that cannot be used are passed over; training reports them.

    Raises:
        SettingsError: the ranks do not share the folder of a store, or its disk is full.
    """
    for maker in makers:
        require_shared(maker.store.folder, maker.store.setting, 'Each makes a share of the entries for all')
    made: list[set[str]] = [set() for _ in makers]
    batch_size = cfgs.train_cfgs.per_device_train_batch_size
    name = ', '.join(maker.name for maker in makers)
    fresh: list[dict[str, Mapping[str, Tensor]]] = [{} for _ in makers]
    written, size = time.monotonic(), 0
    with (
        closing(loader_in_order(dataset, dataset.sizes, batch_size, _Asking(collate, makers), cfgs)) as loader,
        closing(StageConsole(f'prepare {name}', loader.steps_in(0) or 0)) as console,
    ):
        for number, asked in enumerate(loader.micro_batches(0), 1):
            # Ranks make the same calls, whichever of them lacks something.
            missing = [[key for key in keys if key not in made[at]] for at, keys in enumerate(asked.missing)]
            lacking = torch.tensor([float(len(keys)) for keys in missing], device=device)
            for index, lacks in enumerate(all_reduce_sum(lacking).tolist()):
                entries = makers[index].make(asked.batch, asked.keys[index], missing[index]) if lacks else {}
                own = {key: entries[key] for key in missing[index] if key in entries}
                fresh[index] |= own
                made[index] |= own.keys()
                size += sum(tensor.nbytes for tensors in own.values() for tensor in tensors.values())
            if size > PACK_BYTES or time.monotonic() - written > PACK_SECONDS:
                _write(makers, fresh)
                written, size = time.monotonic(), 0
            console.advance(number)
    _write(makers, fresh)
    # Once all ranks are here, all have written; what several of them made counts once.
    for maker, keys in zip(makers, made, strict=True):
        everyones = set().union(*all_gather_object(keys))
        maker.store.refresh()
        logger.info('%s: %d entries made, %s', maker.name, len(everyones), maker.store.folder)


def _write(makers: Sequence[Maker[T]], fresh: Sequence[dict[str, Mapping[str, Tensor]]]) -> None:
    for maker, entries in zip(makers, fresh, strict=True):
        maker.store.put_all(entries)
        entries.clear()


def prepare_known(
    makers: Sequence[Maker[Examples]],
    dataset: ExampleDataset,
    task: Task,
    known: KnownMedia,
    cfgs: RunCfgs,
    device: torch.device,
) -> None:
    """Stores what `makers` make of the rows of `dataset` for `task`, and what is known of their media then.

    Rows of which all was made before are not decoded. Every rank calls it. Raises as `prepare` does.
    """
    rows = dataset.of_task(MadeTask(task, makers), known.noting())
    prepare([*makers, KnownMaker(known.store)], rows, _examples, cfgs, device)


@dataclass
class MadeTask(TaskAround):
    """The rows of another task, with media that are known where all that `makers` make of a row is there."""

    makers: Sequence[Maker[Examples]]

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the task. Raises SampleError where its media have to be decoded."""
        example = super().encode(conversations)
        parts = [part for turns in conversations for message in turns for part in message['content']]
        if any(type(part[part['type']]) is Known for part in parts) and any(
            key not in maker.store for maker in self.makers for key in maker.keys(example)
        ):
            raise SampleError('not all of this row was made yet')
        return example


@dataclass(frozen=True)
class KnownMaker:
    """Stores what was noted of media that were decoded."""

    store: TensorStore
    name: str = 'known media'

    def keys(self, example: Example) -> list[str]:
        """Returns the keys of what was noted of a row."""
        return list(example.meta.get(NOTED, ()))

    def make(
        self, batch: Examples, keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns what was noted of the rows of a batch."""
        return {key: entry for example in batch for key, entry in example.meta.get(NOTED, {}).items()}


@dataclass(frozen=True)
class _Asked(Generic[T]):
    """A batch with what each maker is asked for: the keys of each row, and which of them are missing."""

    batch: T
    keys: list[list[list[str]]]
    missing: list[list[str]]

    def pin_memory(self) -> _Asked[T]:
        """Returns the batch in page-locked memory; the data loader calls it by this name."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class _Asking(Generic[T]):
    """A collator that looks for missing entries in the data workers."""

    collate: Callable[[list[Example], list[Skipped]], T]
    makers: Sequence[Maker[T]]

    def __call__(self, examples: list[Example], skipped: list[Skipped]) -> _Asked[T]:
        keys = [[maker.keys(example) for example in examples] for maker in self.makers]
        missing = [
            [key for key in dict.fromkeys(sum(found, [])) if key not in maker.store]
            for maker, found in zip(self.makers, keys, strict=True)
        ]
        return _Asked(self.collate(examples, skipped), keys, missing)


def _examples(examples: Examples, skipped: Sequence[Skipped]) -> Examples:
    return examples
