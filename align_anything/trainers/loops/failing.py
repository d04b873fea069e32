"""The episodes of a run that failed: listed, counted in its state, and the end of it where they are too many."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from align_anything.reporting.unread import FailedEpisodes
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.failures import require_some

STATE = 'failures'
"""What the state of a run calls how many failed lately."""


@dataclass
class Failing:
    """Asks which episodes failed. Every rank makes the same calls.

    Attributes:
        episodes: what generates them; None where responses are none.
        environment: what it is called.
        listed: the file that they are listed in.
    """

    episodes: Episodes | None
    environment: str
    listed: FailedEpisodes
    _state: dict[str, Any] = field(default_factory=dict)

    def begin(self, state: dict[str, Any]) -> None:
        """Goes on with what the state of a run tells of earlier failures, and keeps it there."""
        self._state = state
        if self.episodes is not None:
            self.episodes.counts = state.get(STATE, [])

    def count(self, step: int) -> int:
        """Returns how many of the episodes that were generated last failed, on all ranks, and lists them.

        Raises WorldError where that is too many; they are listed all the same.
        """
        if self.episodes is None:
            return 0
        failed = self.episodes.failed(partial(self.listed.add, step, self.environment))
        self._state[STATE] = self.episodes.counts
        return len(failed)

    def conclude(self) -> None:
        """Raises WorldError where nothing but failures came of the last episodes of a run."""
        require_some(self._state.get(STATE, []))

    def close(self) -> None:
        """Closes the file."""
        self.listed.close()
