"""What rows take, learnt by encoding them: all of a dataset once, those of a stream a little ahead of their use.

And the buckets of rows, learnt by a look at the headers of their media.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from align_anything.core.distributed import all_gather_object, rank, world_size
from align_anything.core.errors import FilteredError, SampleError
from align_anything.core.types import Conversation, Cost, Example, Skipped
from align_anything.datasets.budget import RowCosts
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.filling import Sized
from align_anything.datasets.loader import Loader
from align_anything.datasets.media import size_of
from align_anything.datasets.mixture import Mixture, StreamedRow
from align_anything.datasets.sampler import BatchShape, IndexSampler, Sampler
from align_anything.datasets.windows import Windows, episode_of

CostOf = Callable[[Example], Cost]
BucketOf = Callable[[list[Conversation]], Hashable]
ROWS_AT_ONCE = 16
UNUSABLE = Cost(1, 1)
"""What a streamed row takes that cannot be used: next to nothing, but no step may hold any number of them."""


def measure_rows(dataset: ExampleDataset, cost: CostOf, num_workers: int) -> tuple[RowCosts, list[Skipped]]:
    """Encodes every row once, each rank its share, and returns the costs of all rows and those that cannot be used.

    `cost` runs in the workers. Every rank calls it and gets the same result.
    """
    shape = BatchShape(ROWS_AT_ONCE, 1, world_size(), rank())
    sampler = IndexSampler(Mixture(dataset.sizes, seed=0, shuffle=False), shape)
    loader = Loader(_Numbered(dataset), sampler, _Costing(cost), num_workers)
    entries: list[tuple[int, Cost]] = []
    skipped: list[tuple[int, Skipped]] = []
    for batch in loader.micro_batches(0):
        entries += batch.entries
        skipped += batch.skipped
    loader.close()
    costs = dict(entry for part in all_gather_object(entries) for entry in part)
    everyones = sorted((item for part in all_gather_object(skipped) for item in part), key=lambda item: item[0])
    return [costs.get(row) for row in range(len(dataset))], [record for _, record in everyones]


def measure_buckets(
    dataset: ExampleDataset, bucket_of: BucketOf, num_workers: int
) -> tuple[list[Hashable | None], list[Skipped]]:
    """Looks at every row once, each rank its share, and returns the buckets of all rows and those that have none.

    Nothing is decoded or encoded, unless `bucket_of` does: it gets the conversations of a row and runs in threads.
    Every rank calls it and gets the same result.
    """

    def bucket(row: int) -> Hashable | Skipped:
        conversations = dataset.formatted(row)
        if isinstance(conversations, Skipped):
            return conversations
        try:
            return bucket_of(conversations)
        except SampleError as error:
            return Skipped(dataset.name_of(row), str(error), isinstance(error, FilteredError))

    own = range(rank(), len(dataset), world_size())
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        found = dict(zip(own, pool.map(bucket, own), strict=True))
    everyones = {row: made for part in all_gather_object(found) for row, made in part.items()}
    buckets = [None if isinstance(everyones[row], Skipped) else everyones[row] for row in range(len(dataset))]
    return buckets, [made for _, made in sorted(everyones.items()) if isinstance(made, Skipped)]


def measure_windows(dataset: ExampleDataset, windows: Windows, num_workers: int) -> list[int]:
    """Looks at every row once, each rank its share, and returns how many windows each has.

    A row that makes no episode has one, in which it is left out with its reason. Every rank calls it.
    """

    def count(conversations: list[Conversation]) -> int:
        episode = episode_of(conversations[0])
        return 1 if episode is None else windows.count(len(episode))

    counts, _ = measure_buckets(dataset, count, num_workers)
    return [1 if found is None else int(found) for found in counts]


def size_of_answer(conversations: Sequence[Conversation]) -> tuple[int, ...]:
    """Returns the size of the medium that a row is answered with, of several answers that of the first.

    A look into its file tells, see `size_of`. Raises SampleError where the answer holds no medium.
    """
    for turn in reversed(conversations[0]):
        for part in turn['content'] if turn['role'] == 'assistant' else ():
            if part['type'] != 'text':
                return size_of(part[part['type']])
    raise SampleError('the answer holds no medium.')


def measure_stream(
    dataset: ExampleDataset,
    cost: CostOf,
    num_workers: int,
    rows: Iterator[StreamedRow],
) -> Iterator[Sized]:
    """Yields the rows with what they take, in their order; each rank encodes its share of them.

    Every rank must ask for equally many rows, because the ranks tell each other what they found.
    """
    chunks = _Chunks(rows)
    with closing(Loader(_Numbered(dataset), chunks, _Costing(cost), num_workers)) as loader:
        for batch in loader.micro_batches(0):
            found = dict(entry for part in all_gather_object(batch.entries) for entry in part)
            for row in chunks.handed_out.popleft():
                yield Sized(row, found.get(row.number, UNUSABLE))


class _Chunks(Sampler):
    """A sampler of this rank's share of some rows after the other; `handed_out` are those of all ranks."""

    def __init__(self, rows: Iterator[StreamedRow]) -> None:
        self.shape = BatchShape(ROWS_AT_ONCE, 1, world_size(), rank())
        self.handed_out: deque[list[StreamedRow]] = deque()
        self._rows = rows

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[StreamedRow]]:
        while chunk := list(islice(self._rows, self.shape.global_size)):
            self.handed_out.append(chunk)
            yield from self.shape.share(chunk)


class _Numbered:
    """The dataset with each row's number at hand, since a list of Examples no longer tells which rows are missing."""

    def __init__(self, dataset: ExampleDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int | StreamedRow) -> Example | Skipped:
        made = self.dataset[index]
        number = index.number if isinstance(index, StreamedRow) else index
        if isinstance(made, Example):
            made.meta = {'row': number}
            return made
        return _NumberedSkip(made.source, made.reason, made.filtered, number)


@dataclass(frozen=True)
class _NumberedSkip(Skipped):
    row: int = 0


@dataclass(frozen=True)
class _Costs:
    entries: list[tuple[int, Cost]]
    skipped: list[tuple[int, Skipped]]


@dataclass(frozen=True)
class _Costing:
    cost: CostOf

    def __call__(self, examples: list[Example], skipped: list[Skipped]) -> _Costs:
        return _Costs(
            [(example.meta['row'], self.cost(example)) for example in examples],
            [(record.row, Skipped(record.source, record.reason, record.filtered)) for record in skipped],
        )
