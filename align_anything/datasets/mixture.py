"""The order in which the rows of one or several sources are seen: a pure function of (seed, epoch)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import torch
from torch import Tensor

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.rows import RowStream

SHUFFLE_BUFFER = 1024


@dataclass(frozen=True)
class StreamedRow:
    """A row that travels to the worker itself, because its source can't be indexed.

    `row` is the raw row, or the error its reading ended in; `part` is the number of its source in the mixture.
    """

    part: int
    name: str
    row: dict[str, Any] | SampleError


class Mixture:
    """An order over the concatenation of parts of the given sizes.

    Without weights an epoch holds every row once. With weights it is as long, and each part fills its share of it:
    rows are drawn without replacement until the part is exhausted, then it is shuffled anew; the next epoch goes on
    where this one stopped, so that no row of a large part with a small weight is left out for ever.

    Raises:
        DataError: the weights aren't one number for each part, zero or more, not all zero.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, weights: Sequence[float] | None = None, shuffle: bool = True
    ) -> None:
        self.sizes = list(sizes)
        self._seed, self._shuffle = seed, shuffle
        self._ends = list(accumulate(self.sizes))
        check_weights(weights, len(self.sizes))
        self._quotas = None if weights is None else _shares(len(self), weights)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return self._ends[-1]

    def order(self, epoch: int) -> Tensor:
        """Returns the indices, into the concatenation of the parts, of that epoch, `(rows,)` int64."""
        if self._quotas is None:
            return _permutation(len(self), self._seed, epoch) if self._shuffle else torch.arange(len(self))
        drawn = torch.cat([self._draw(part, epoch) for part in range(len(self.sizes))])
        return drawn[_permutation(len(drawn), self._seed, epoch)] if self._shuffle else drawn

    def _draw(self, part: int, epoch: int) -> Tensor:
        size, quota = self.sizes[part], self._quotas[part]
        first, rounds = epoch * quota, []
        for turn in range(first // size, -(-(first + quota) // size)):
            rounds.append(_permutation(size, self._seed, 'part', part, turn))
        skipped = first % size
        offset = self._ends[part] - size
        return torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[skipped : skipped + quota] + offset


class StreamMixture:
    """The same for streams: rows are mixed as they arrive, then pass through a shuffle buffer.

    Without weights the parts are read in turn until all are exhausted, each row once. With weights each next row comes
    from a part drawn by weight; an exhausted part starts again, and the epoch ends when each was read through once.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        buffer_size: int = SHUFFLE_BUFFER,
    ) -> None:
        check_weights(weights, len(streams))
        self._streams, self._weights = list(streams), weights
        self._seed, self._shuffle, self._buffer_size = seed, shuffle, buffer_size

    def rows(self, epoch: int) -> Iterator[StreamedRow]:
        """Yields the rows of that epoch in order."""
        mixed = self._in_turn() if self._weights is None else self._by_weight(epoch)
        return self._shuffled(mixed, epoch) if self._shuffle else mixed

    def _in_turn(self) -> Iterator[StreamedRow]:
        running = {part: iter(stream) for part, stream in enumerate(self._streams)}
        while running:
            for part, stream in list(running.items()):
                item = next(stream, None)
                if item is None:
                    del running[part]
                else:
                    yield StreamedRow(part, *item)

    def _by_weight(self, epoch: int) -> Iterator[StreamedRow]:
        random = Random(mix_seed(self._seed, 'stream weights', epoch))
        unread = {part for part, weight in enumerate(self._weights) if weight}
        running = [iter(stream) for stream in self._streams]
        while True:
            part = random.choices(range(len(self._streams)), self._weights)[0]
            item = next(running[part], None)
            if item is None:
                unread.discard(part)
                if not unread:
                    return
                running[part] = iter(self._streams[part])
                item = next(running[part], None)
                if item is None:
                    raise DataError(
                        f'stream number {part + 1} of the mixture has no rows; take it out of the datasets.'
                    )
            yield StreamedRow(part, *item)

    def _shuffled(self, rows: Iterator[StreamedRow], epoch: int) -> Iterator[StreamedRow]:
        random = Random(mix_seed(self._seed, 'stream buffer', epoch))
        buffer: list[StreamedRow] = []
        for row in rows:
            if len(buffer) < self._buffer_size:
                buffer.append(row)
                continue
            at = random.randrange(self._buffer_size)
            buffer[at], row = row, buffer[at]
            yield row
        random.shuffle(buffer)
        yield from buffer


def mix_seed(*parts: object) -> int:
    """Returns a 63 bit seed that depends on every part and on nothing else (not on the process or the platform)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'little') >> 1


def check_weights(weights: Sequence[float] | None, parts: int) -> None:
    """Raises `DataError` unless there is a weight of zero or more for each part, some above, or no weights at all."""
    if weights is None:
        return
    if len(weights) != parts:
        raise DataError(f'{len(weights)} weights for {parts} datasets; give one for each, or none to concatenate them.')
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
        raise DataError(f'dataset weights {list(weights)}: each must be zero or more and one must be above zero.')


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Splits `total` in proportion to the weights by largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: shares[part] - exact[part])
    for part in by_remainder[: total - sum(shares)]:
        shares[part] += 1
    return shares


def _permutation(size: int, *seed: object) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(mix_seed(*seed)))
