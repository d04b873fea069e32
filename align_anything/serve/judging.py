"""A reward model that judges the answers of requests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, MediaKind
from align_anything.rewards.base import Completion

if TYPE_CHECKING:
    from align_anything.trainers.runs.roles import ModelJudge


class Judge(Protocol):
    """What scores answers.

    Attributes:
        name: what it goes by.
        reads: kinds of media that it takes.
    """

    name: str
    reads: frozenset[MediaKind]

    def scores(self, conversations: Sequence[Conversation]) -> list[float]:
        """Returns the score of the answer that ends each conversation, media decoded; from any thread.

        Raises SampleError for one that it cannot read.
        """
        ...


class RewardModel:
    """A reward model; calls of several threads wait for each other.

    Args:
        name: what it goes by.
        judge: the model.
    """

    def __init__(self, name: str, judge: ModelJudge) -> None:
        self.name, self._judge = name, judge
        self.reads: frozenset[MediaKind] = judge.spec.reads
        self._lock = threading.Lock()

    def scores(self, conversations: Sequence[Conversation]) -> list[float]:
        """As `Judge.scores`."""
        completions = [
            Completion(turns[:-1], turns[-1], meta={}, length=0, finished=True, source=f'conversation {number}')
            for number, turns in enumerate(conversations)
        ]
        with self._lock:
            found, unread = self._judge(completions), self._judge.unread()
        if unread:
            raise SampleError('; '.join(f'{one.source}: {one.reason}' for one in unread))
        return found
