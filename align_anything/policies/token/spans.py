"""The pieces of a packed row that attention sees apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Tokens `[start, stop)` of a packed row; they see themselves causally and all of `[prefix_start, prefix_stop)`."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0

    @property
    def prefix_length(self) -> int:
        return self.prefix_stop - self.prefix_start
