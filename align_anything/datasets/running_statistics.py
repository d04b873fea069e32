"""Mean, deviation, extremes and percentiles of numbers that come a few at a time and are not kept.

They do not hang on the order in which the numbers come, nor on who saw which of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from torch import Tensor

from align_anything.core.actions import Normalization, Statistics
from align_anything.core.errors import DataError

DISTINCT = 2**16
"""Different values of a dimension up to which they are all counted, so that its percentiles are exact."""
FINEST = -40
"""Bins beyond that are so many powers of two wide at least."""
LOW, HIGH = 0.01, 0.99


@dataclass
class Counted:
    """How often each value of a dimension came; of too many values, each bin of a histogram.

    Bins of one width lie in those of the double width, so whatever order values come in, the histogram is the same.

    Attributes:
        values: in ascending order, those of bins in units of their width.
        counts: of each.
        power: the width of bins as a power of two, None where values are counted.
        waiting: numbers that are not counted yet, since sorting many at once is faster.
    """

    values: numpy.ndarray = field(default_factory=lambda: numpy.empty(0))
    counts: numpy.ndarray = field(default_factory=lambda: numpy.empty(0, numpy.int64))
    power: int | None = None
    waiting: list[numpy.ndarray] = field(default_factory=list)

    def add(self, values: numpy.ndarray) -> None:
        """Takes numbers, `(numbers,)`."""
        self.waiting.append(values)
        if sum(map(len, self.waiting)) > DISTINCT:
            self.settle()

    def settle(self) -> None:
        """Counts the numbers that wait to be."""
        if not self.waiting:
            return
        values, self.waiting = numpy.concatenate(self.waiting), []
        found = values if self.power is None else numpy.floor(numpy.ldexp(values, -self.power))
        self._take(found, numpy.ones(len(found), numpy.int64))

    def merge(self, other: Counted) -> None:
        """Takes what another one has counted."""
        self.settle()
        other.settle()
        powers = [own.power for own in (self, other) if own.power is not None]
        if powers:
            for own in (self, other):
                own._widen(max(powers))
        self._take(other.values, other.counts)

    def quantile(self, share: float) -> float:
        """Returns the value below which this share of all lies, between two values in proportion."""
        self.settle()
        ends = numpy.cumsum(self.counts)
        at = share * (ends[-1] - 1)
        below, above = (
            self._value(int(numpy.searchsorted(ends, place, side='right'))) for place in (math.floor(at), math.ceil(at))
        )
        return below + (above - below) * (at - math.floor(at))

    def histogram(self, bins: int) -> list[tuple[float, float, int]]:
        """Returns the lower and the upper end of so many bins of one width, and how many values are in each."""
        self.settle()
        values = self.values if self.power is None else (self.values + 0.5) * self.width
        counts, edges = numpy.histogram(values, bins if values[0] < values[-1] else 1, weights=self.counts)
        return [
            (float(low), float(high), int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ]

    @property
    def width(self) -> float:
        """Of the bins, 0 where values are exact."""
        return 0.0 if self.power is None else 2.0**self.power

    def _value(self, index: int) -> float:
        return float(self.values[index]) if self.power is None else (float(self.values[index]) + 0.5) * self.width

    def _take(self, values: numpy.ndarray, counts: numpy.ndarray) -> None:
        both = numpy.concatenate([self.values, values])
        self.values, places = numpy.unique(both, return_inverse=True)
        self.counts = numpy.bincount(
            places, weights=numpy.concatenate([self.counts, counts]), minlength=len(self.values)
        ).astype(numpy.int64)
        while len(self.values) > DISTINCT:
            self._widen(FINEST if self.power is None else self.power + 1)

    def _widen(self, power: int) -> None:
        if self.power == power:
            return
        finer = power if self.power is None else power - self.power
        values, counts = numpy.floor(numpy.ldexp(self.values, -finer)), self.counts
        self.values, places = numpy.unique(values, return_inverse=True)
        self.counts = numpy.bincount(places, weights=counts, minlength=len(self.values)).astype(numpy.int64)
        self.power = power


@dataclass
class Running:
    """What steps of numbers are like so far.

    Sums are kept for each episode and added exactly in the end, so that rounding does not hang on the order either.
    """

    steps: int = 0
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    sums: list[list[float]] = field(default_factory=list)
    squares: list[list[float]] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """Takes the steps of an episode, `(steps, dimensions)`. Raises DataError for another number of dimensions."""
        array = values.double().numpy()
        if not len(array):
            return
        self._fit(array.shape[1])
        self.steps += len(array)
        self._reach(array.min(0).tolist(), array.max(0).tolist())
        self.sums.append([math.fsum(column) for column in array.T.tolist()])
        self.squares.append([math.fsum(value * value for value in column) for column in array.T.tolist()])
        for counted, column in zip(self.counted, array.T, strict=True):
            counted.add(column)

    def merge(self, other: Running) -> None:
        """Takes what another one has seen."""
        if not other.steps:
            return
        self._fit(len(other.counted))
        self.steps += other.steps
        self._reach(other.least, other.most)
        self.sums += other.sums
        self.squares += other.squares
        for own, others in zip(self.counted, other.counted, strict=True):
            own.merge(others)

    def summary(self) -> Summary:
        """Returns the numbers. Raises DataError where there was no step."""
        if not self.steps:
            raise DataError('no step was recorded, so there is nothing to tell of its numbers.')
        means = [math.fsum(column) / self.steps for column in zip(*self.sums, strict=True)]
        squares = [math.fsum(column) / self.steps for column in zip(*self.squares, strict=True)]
        deviations = [math.sqrt(max(0.0, square - mean * mean)) for square, mean in zip(squares, means, strict=True)]
        percentiles = [(own.quantile(LOW), own.quantile(HIGH)) for own in self.counted]
        return Summary(
            self.steps,
            tuple(means),
            tuple(deviations),
            tuple(self.least),
            tuple(self.most),
            tuple(low for low, _ in percentiles),
            tuple(high for _, high in percentiles),
            tuple(own.width for own in self.counted),
        )

    def _reach(self, least: list[float], most: list[float]) -> None:
        self.least = [min(pair) for pair in zip(self.least or least, least, strict=True)]
        self.most = [max(pair) for pair in zip(self.most or most, most, strict=True)]

    def _fit(self, dimensions: int) -> None:
        self.counted = self.counted or [Counted() for _ in range(dimensions)]
        if len(self.counted) != dimensions:
            raise DataError(
                f'some episodes have {len(self.counted)} numbers in a step and some {dimensions}: those of one '
                'dataset are of one kind. Leave one kind of them out.'
            )


@dataclass(frozen=True)
class Summary:
    """What numbers are like, one entry for each dimension.

    Attributes:
        steps: how many were seen.
        mean, std: of the whole, the deviation not corrected.
        least, most: the extremes.
        low, high: the 1st and 99th percentile.
        width: of the bins by which percentiles were found, 0 where they are exact.
    """

    steps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    width: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """Whether all percentiles are."""
        return not any(self.width)

    def statistics(self, normalization: Normalization, mask: Sequence[bool]) -> Statistics:
        """Returns what an action space has of it: the percentiles as its ends, else the extremes."""
        ends = (self.low, self.high) if normalization == 'quantiles' else (self.least, self.most)
        return Statistics(*ends, self.mean, self.std, tuple(mask))
