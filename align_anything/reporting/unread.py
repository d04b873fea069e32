"""The responses of an online run that a model which judges them cannot read, or an environment failed, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from align_anything.core.distributed import is_main
from align_anything.core.logging import get_logger
from align_anything.core.types import Skipped
from align_anything.datasets.skips import kind_of_reason
from align_anything.reporting.metrics import StepFile

UNREAD_FILE, FAILED_FILE = 'unread_responses.jsonl', 'failed_episodes.jsonl'

logger = get_logger(__name__)


class Listed:
    """Lists responses with the reason why they are listed, and warns of the first for each kind of reason.

    Args:
        output_dir: folder of the run.
        resume_step: step that the run goes on from, whose later records are dropped; None starts afresh.
    """

    file: ClassVar[str]
    who: ClassVar[str]
    """What a record calls who could not do with the response."""
    told: ClassVar[str]
    """The warning, of who it is, the row, the reason and the file."""

    def __init__(self, output_dir: Path, resume_step: int | None) -> None:
        self._path, self._resume_step = output_dir / self.file, resume_step
        self._warned: set[tuple[str, str]] = set()
        # There is a file only once there is something to list.
        self._file = self._opened() if self._path.exists() and is_main() else None

    def add(self, step: int, who: str, found: Sequence[Skipped]) -> None:
        """Lists what `who` could not do with, on all ranks, of the responses sampled after optimizer step `step`."""
        if not found or not is_main():
            return
        self._file = self._file or self._opened()
        for item in found:
            kind = who, kind_of_reason(item.reason)
            if kind not in self._warned:
                self._warned.add(kind)
                logger.warning(self.told, who, item.source, item.reason, self._path)
            self._file.append(step + 1, {self.who: who, 'source': item.source, 'reason': item.reason})

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> StepFile:
        return StepFile(self._path, self._resume_step)


class UnreadResponses(Listed):
    """What a model that judges cannot read, in `<output_dir>/unread_responses.jsonl`."""

    file, who = UNREAD_FILE, 'judge'
    told = (
        '%s cannot read a response to %s: %s (further ones for this reason are only counted and listed in %s; they get '
        'its unread_score)'
    )


class FailedEpisodes(Listed):
    """Whose environment failed, in `<output_dir>/failed_episodes.jsonl`."""

    file, who = FAILED_FILE, 'environment'
    told = (
        'the environment %s failed in an episode of %s: %s (further ones for this reason are only counted and listed '
        'in %s; see on_failure and max_failures)'
    )
