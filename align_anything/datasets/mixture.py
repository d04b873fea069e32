"""The order in which the rows of one or several sources are seen: a pure function of (seed, epoch)."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from random import Random
from typing import Any

import torch
from torch import Tensor

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.rows import RowStream

SHUFFLE_BUFFER = 1024
_Item = tuple[int, tuple[str, dict[str, Any] | SampleError]]


@dataclass(frozen=True)
class StreamedRow:
    """A row that travels to the worker itself, because its source can't be indexed.

    `row` is the raw row, or the error its reading ended in; `source_index` is the number of its source in the mixture,
    and `number` that of the row in the order of the epoch.
    """

    source_index: int
    name: str
    row: dict[str, Any] | SampleError
    number: int = 0


class Mixture:
    """An order over the concatenation of sources of the given sizes.

    Without weights an epoch holds every row once, all sources shuffled as one; `in_turn`, each is shuffled by
    itself and they give a row each, one that is exhausted drops out. With weights an epoch is as long, and each source
    fills its share of it: rows are taken without replacement until it is exhausted, then it is shuffled anew;
    the next epoch goes on where this one stopped, so that no row of a large source with a small weight is left out for
    ever.

    Raises:
        DataError: the weights aren't one number for each source, zero or more, not all zero.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        in_turn: bool = False,
    ) -> None:
        self.sizes = list(sizes)
        self._seed, self._shuffle, self._in_turn = seed, shuffle, in_turn
        self._ends = list(accumulate(self.sizes))
        check_weights(weights, len(self.sizes))
        self._quotas = None if weights is None else _shares(len(self), weights)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return self._ends[-1]

    def order(self, epoch: int) -> Tensor:
        """Returns the indices, into the concatenation of the sources, of that epoch, `(rows,)` int64."""
        if self._quotas is None:
            return self._turns(epoch) if self._in_turn else self._numbers(epoch, len(self))
        taken = torch.cat([self._take(source, epoch) for source in range(len(self.sizes))])
        return taken[self._numbers(epoch, len(taken))]

    def _numbers(self, epoch: int, size: int, *key: object) -> Tensor:
        return _permutation(size, self._seed, epoch, *key) if self._shuffle else torch.arange(size)

    def _turns(self, epoch: int) -> Tensor:
        sources = [
            self._numbers(epoch, size, 'turn', source) + end - size
            for source, (size, end) in enumerate(zip(self.sizes, self._ends, strict=True))
        ]
        turns = torch.cat([torch.arange(size) for size in self.sizes])
        return torch.cat(sources)[turns.argsort(stable=True)]

    def _take(self, source: int, epoch: int) -> Tensor:
        size, quota = self.sizes[source], self._quotas[source]
        first, rounds = epoch * quota, []
        for turn in range(first // size, -(-(first + quota) // size)):
            rounds.append(_permutation(size, self._seed, 'part', source, turn))
        skipped = first % size
        offset = self._ends[source] - size
        return torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[skipped : skipped + quota] + offset


class StreamMixture:
    """The same for streams, whose rows can only be shuffled within a buffer of the next ones.

    Without weights each row comes once: the sources one after the other, or `in_turn` a row of each until all are
    exhausted. With weights each next row comes from a source sampled by weight; an exhausted one starts again, and the
    epoch ends when each was read through once.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        in_turn: bool = False,
        buffer_size: int = SHUFFLE_BUFFER,
    ) -> None:
        check_weights(weights, len(streams))
        self._streams, self._weights, self._in_turn = list(streams), weights, in_turn
        self._seed, self._shuffle, self._buffer_size = seed, shuffle, buffer_size

    def rows(self, epoch: int) -> Iterator[StreamedRow]:
        """Yields the rows of that epoch in order."""
        for number, (source, (name, row)) in enumerate(self._mixed(epoch)):
            yield StreamedRow(source, name, row, number)

    def _mixed(self, epoch: int) -> Iterator[_Item]:
        if self._weights is not None:
            return self._shuffled(self._by_weight(epoch), epoch, self._buffer_size)
        streams = [zip(repeat(source), stream, strict=False) for source, stream in enumerate(self._streams)]
        if not self._in_turn:
            return self._shuffled(chain.from_iterable(streams), epoch, self._buffer_size)
        # Shuffled before they meet, so that the turns are kept.
        size = max(1, self._buffer_size // len(streams))
        return _turns([self._shuffled(rows, epoch, size, source) for source, rows in enumerate(streams)])

    def _by_weight(self, epoch: int) -> Iterator[_Item]:
        random = Random(mix_seed(self._seed, 'stream weights', epoch))
        unread = {source for source, weight in enumerate(self._weights) if weight}
        running = [iter(stream) for stream in self._streams]
        while True:
            source = random.choices(range(len(self._streams)), self._weights)[0]
            item = next(running[source], None)
            if item is None:
                unread.discard(source)
                if not unread:
                    return
                running[source] = iter(self._streams[source])
                item = next(running[source], None)
                if item is None:
                    raise DataError(
                        f'stream number {source + 1} of the mixture has no rows; take it out of the datasets.'
                    )
            yield source, item

    def _shuffled(self, rows: Iterable[_Item], epoch: int, size: int, *key: object) -> Iterator[_Item]:
        if not self._shuffle:
            yield from rows
            return
        random = Random(mix_seed(self._seed, 'stream buffer', epoch, *key))
        buffer: list[_Item] = []
        for row in rows:
            if len(buffer) < size:
                buffer.append(row)
                continue
            at = random.randrange(size)
            buffer[at], row = row, buffer[at]
            yield row
        random.shuffle(buffer)
        yield from buffer


def mix_seed(*parts: object) -> int:
    """Returns a 63 bit seed that depends on every part and on nothing else (not on the process or the platform)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'little') >> 1


def check_weights(weights: Sequence[float] | None, sources: int) -> None:
    """Raises `DataError` unless there is a weight of zero or more for each source, some above, or no weights at all."""
    if weights is None:
        return
    if len(weights) != sources:
        raise DataError(
            f'{len(weights)} weights for {sources} datasets; give one for each, or none to concatenate them.'
        )
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
        raise DataError(f'dataset weights {list(weights)}: each must be zero or more and one must be above zero.')


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Splits `total` in proportion to the weights by largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _permutation(size: int, *seed: object) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(mix_seed(*seed)))


def _turns(streams: Iterable[Iterator[_Item]]) -> Iterator[_Item]:
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        item = next(stream, None)
        if item is not None:
            yield item
            waiting.append(stream)
