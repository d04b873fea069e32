"""One episode of a pool, whose failures are raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.environments import Said
from align_anything.environments.pool import Answered, Begun, EpisodeFailed, Pool


class One:
    """An episode of a row and a seed, not begun yet."""

    def __init__(self, pool: Pool, row: Mapping[str, Any], seed: int) -> None:
        self.pool, self.seats = pool, pool.open([row], [seed])

    def begin(self) -> Begun:
        return only(self.pool.begin(self.seats))

    def step(self, said: Said) -> Answered:
        return only(self.pool.step(self.seats, [said]))

    def score(self) -> float | None:
        return only(self.pool.score(self.seats))

    def close(self) -> None:
        self.pool.close(self.seats)


def only(found: list[Any]) -> Any:
    (value,) = found
    if type(value) is EpisodeFailed:
        raise value
    return value
