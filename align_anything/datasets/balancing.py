"""Equal work for ranks: what takes long is spread so that nobody waits for the busiest one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

NEAR_ENOUGH = np.array([1.01, 1.05, 1.05])
"""Largest load over mean at which nothing is exchanged any more: of all work, of the towers', of the rest."""
PARTNERS = 8
"""How many of the least busy ranks one looks at for an exchange."""
ROUNDS = 8
"""Most exchanges for each rank, and for the least number of them."""

Fits = Callable[[Sequence[int]], bool]


def partition(values: Sequence[float], parts: int, equal_sizes: bool = False) -> list[list[int]]:
    """Splits numbers into `parts` of nearly equal sums, by largest differences first (Karmarkar and Karp, 1982).

    With `equal_sizes` all parts have equally many, for which their number must be a multiple of `parts`. Returns the
    indices of each part.
    """
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    width = parts if equal_sizes else 1
    # A partial solution holds its parts by falling sum, those without anything left out.
    heap: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for number, start in enumerate(range(0, len(order), width)):
        made = [(values[index], [index]) for index in order[start : start + width]]
        heap.append((-_difference(made, parts), number, made))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, first, one = heapq.heappop(heap)
        _, second, other = heapq.heappop(heap)
        padded = [*one, *[(0.0, [])] * (parts - len(one))]
        # The largest of one goes with the smallest of the other.
        for place, (total, held) in enumerate(other, 1):
            padded[-place] = (padded[-place][0] + total, padded[-place][1] + held)
        made = sorted((part for part in padded if part[1]), key=lambda part: -part[0])
        heapq.heappush(heap, (-_difference(made, parts), min(first, second), made))
    found = [sorted(held) for _, held in (heap[0][2] if heap else [])]
    return found + [[] for _ in range(parts - len(found))]


def _difference(made: Sequence[tuple[float, list[int]]], parts: int) -> float:
    return made[0][0] - (made[-1][0] if len(made) == parts else 0.0)


def unevenness(loads: Sequence[float]) -> float:
    """Returns the largest load over the mean; 1 where nobody has any."""
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0


class Balancer:
    """Items in bins of ranks, exchanged as long as that makes the busiest rank less busy.

    Ranks that gather each layer from all meet after the towers too, so that the towers' work and the rest are both to
    be equal; elsewhere only their sum is. What is lowered is the sum of the largest loads of all three.

    Args:
        work, towers: what each item takes, and how much of that is the towers'.
        bins: the items of each bin, equally many bins for each rank, rank by rank.
        ranks: how many.
        fits: whether a bin may hold these items; None where any may.
    """

    def __init__(
        self,
        work: Sequence[float],
        towers: Sequence[float],
        bins: Sequence[Sequence[int]],
        ranks: int,
        fits: Fits | None = None,
    ) -> None:
        all_of, of_towers = np.array(work, float), np.array(towers, float)
        # Of no item the last.
        self._loads = np.concatenate([np.stack([all_of, of_towers, all_of - of_towers], 1), np.zeros((1, 3))])
        self.bins, self._fits = [list(held) for held in bins], fits
        self._bins_of = [range(rank * len(bins) // ranks, (rank + 1) * len(bins) // ranks) for rank in range(ranks)]
        self._ranks = np.stack(
            [self._loads[[item for bin_ in own for item in self.bins[bin_]]].sum(0) for own in self._bins_of]
        )

    def run(self) -> list[list[int]]:
        """Returns the items of each bin afterwards."""
        means = np.maximum(self._ranks.mean(0), 1e-12)
        for _ in range(ROUNDS * (len(self._ranks) + ROUNDS)):
            if (self._ranks.max(0) / means <= NEAR_ENOUGH).all() or not self._improve():
                break
        return self.bins

    def _improve(self) -> bool:
        """Makes an exchange of a rank that is the busiest in something with one of the least busy; False for none."""
        for loads in self._ranks.T:
            order = np.argsort(-loads, kind='stable')
            for other in order[: -PARTNERS - 1 : -1]:
                if other != order[0] and self._exchange(int(order[0]), int(other)):
                    return True
        return False

    def _exchange(self, busy: int, other: int) -> bool:
        """Makes the best exchange of an item between two ranks, for another one or for none; False where none helps."""
        gone = [(bin_, item) for bin_ in self._bins_of[busy] for item in self.bins[bin_]]
        come = [(bin_, item) for bin_ in self._bins_of[other] for item in (-1, *self.bins[bin_])]
        moved = self._loads[[item for _, item in gone]][:, None] - self._loads[[item for _, item in come]][None]
        rest = np.delete(self._ranks, (busy, other), axis=0).max(0, initial=0.0)
        mine, theirs = self._ranks[busy], self._ranks[other]
        after = np.maximum(np.maximum(mine - moved, theirs + moved), rest).sum(-1)
        enough = (1 - 1e-6) * np.maximum(np.maximum(mine, theirs), rest).sum()
        better = np.flatnonzero(after < enough)
        for at in better[np.argsort(after.flat[better], kind='stable')]:
            (source, item), (target, back) = gone[at // len(come)], come[at % len(come)]
            if self._possible(source, target, item, back):
                self._swap(source, target, item, back)
                step = moved.reshape(-1, 3)[at]
                self._ranks[busy], self._ranks[other] = mine - step, theirs + step
                return True
        return False

    def _swap(self, source: int, target: int, item: int, back: int) -> None:
        self.bins[source].remove(item)
        self.bins[target].append(item)
        if back >= 0:
            self.bins[target].remove(back)
            self.bins[source].append(back)

    def _possible(self, source: int, target: int, item: int, back: int) -> bool:
        if self._fits is None:
            return True
        gains = [other for other in self.bins[target] if other != back] + [item]
        left = [other for other in self.bins[source] if other != item] + ([back] if back >= 0 else [])
        return self._fits(gains) and self._fits(left)
