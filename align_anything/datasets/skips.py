"""The list of rows that were left out, kept in a file so that it outlives the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from align_anything.core.errors import TrainingError
from align_anything.core.types import Skipped

FILE_NAME = 'skipped_samples.jsonl'
SHOWN = 10


class SkipReport:
    """Collects `Skipped` records of all ranks, each source once, in `<output_dir>/skipped_samples.jsonl`.

    Every rank has its own report on the same file: a line is written by a single append, and what the others wrote
    is read back before new lines are added. What an earlier part of the run wrote is taken over.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / FILE_NAME
        self._reasons: dict[str, str] = {}
        self._read_up_to = 0
        self.refresh()

    def __len__(self) -> int:
        """Number of different rows left out, as far as this rank has read."""
        return len(self._reasons)

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Files the records whose source isn't listed yet."""
        new = {record.source: record.reason for record in skipped if record.source not in self._reasons}
        if not new:
            return
        self.refresh()
        lines = [
            json.dumps({'source': source, 'reason': reason}, ensure_ascii=False)
            for source, reason in new.items()
            if source not in self._reasons
        ]
        self._reasons.update(new)
        if lines:
            self._append(''.join(line + '\n' for line in lines))

    def refresh(self) -> None:
        """Reads what other ranks, or an earlier run, have added to the file."""
        if not self.path.exists():
            return
        with self.path.open('rb') as file:
            file.seek(self._read_up_to)
            text = file.read()
        complete = text[: text.rfind(b'\n') + 1]
        self._read_up_to += len(complete)
        for line in complete.splitlines():
            try:
                record = json.loads(line)
                self._reasons.setdefault(record['source'], record['reason'])
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a killed run

    def check(self, total_rows: int, max_ratio: float, count: int | None = None) -> None:
        """Stops the run when more than `max_ratio` of `total_rows` were left out.

        Args:
            count: the number all ranks agreed on; without it the number this rank has read so far, which may differ
                between ranks for a moment.

        Raises:
            TrainingError: with the first records and the place of the whole list.
        """
        count = len(self) if count is None else count
        if count <= max_ratio * total_rows:
            return
        head = '\n'.join(f'- {source}: {reason}' for source, reason in list(self._reasons.items())[:SHOWN])
        raise TrainingError(
            f'{count} of {total_rows} rows could not be used, data_cfgs.max_skipped_ratio={max_ratio} allows fewer. '
            f'The first of them:\n{head}\nThe whole list is in {self.path}. Mend the rows, or raise max_skipped_ratio.'
        )

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b'\n':
                text = '\n' + text  # a killed run left half a line
            os.write(handle, text.encode())
        finally:
            os.close(handle)
