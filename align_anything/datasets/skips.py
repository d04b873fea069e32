"""The list of rows that were left out, kept in a file so that it outlives the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from align_anything.core.distributed import is_main
from align_anything.core.errors import TrainingError
from align_anything.core.files import atomic_write_text
from align_anything.core.logging import get_logger
from align_anything.core.types import Skipped

FILE_NAME = 'skipped_samples.jsonl'
SHOWN = 10

logger = get_logger(__name__)


def kind_of_reason(reason: str) -> str:
    """Returns a reason without what differs from row to row: quoted names, paths and numbers."""
    unquoted = re.sub(r"'[^']*'", "'…'", reason)
    return re.sub(r'\d+', 'N', re.sub(r'[^\s\']*/[^\s\']*', '…', unquoted))


class SkipReport:
    """The `Skipped` records of a run, each source once, in `<output_dir>/skipped_samples.jsonl`.

    Every rank is given the records of all ranks, so that all agree on the number; the main rank writes the file, and
    warns of the first row of each kind of reason.
    """

    def __init__(self, output_dir: str | Path, keep: int = 0) -> None:
        """Starts a list. `keep` records of an earlier time of the run stay; what it listed later comes again."""
        self.path = Path(output_dir) / FILE_NAME
        self._reasons: dict[str, str] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding='utf-8').splitlines()[:keep]:
                record = json.loads(line)
                self._reasons[record['source']] = record['reason']

    def __len__(self) -> int:
        """Number of different rows left out."""
        return len(self._reasons)

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Files the records whose source isn't listed yet. Every rank calls it with the records of all ranks."""
        new = {record.source: record.reason for record in skipped if record.source not in self._reasons}
        if not new:
            return
        known = self._kinds()
        self._reasons.update(new)
        if not is_main():
            return
        for source, reason in new.items():
            kind = kind_of_reason(reason)
            if kind not in known and len(known) < SHOWN:
                logger.warning('left out %s: %s (further rows for this reason are only counted)', source, reason)
            known[kind] += 1
        self._write()

    def conclude(self) -> None:
        """Warns of how many rows were left out for each kind of reason, if any were."""
        if self._reasons and is_main():
            causes = ''.join(f'\n- {count} × {kind}' for kind, count in self._kinds().most_common(SHOWN))
            logger.warning('rows left out: %d, each listed in %s:%s', len(self), self.path, causes)

    def check(self, total_rows: int, max_ratio: float) -> None:
        """Stops the run when more than `max_ratio` of `total_rows` were left out.

        Raises:
            TrainingError: with the first records and the path of the full list.
        """
        count = len(self)
        if count <= max_ratio * total_rows:
            return
        head = '\n'.join(f'- {source}: {reason}' for source, reason in list(self._reasons.items())[:SHOWN])
        raise TrainingError(
            f'{count} of {total_rows} rows could not be used, data_cfgs.max_skipped_ratio={max_ratio} allows fewer. '
            f'The first of them:\n{head}\nThe full list is in {self.path}. Mend the rows, or raise max_skipped_ratio.'
        )

    def _kinds(self) -> Counter[str]:
        return Counter(map(kind_of_reason, self._reasons.values()))

    def _write(self) -> None:
        # Rewritten in full, since a list that may fill a small share of the rows is short and a torn one is useless.
        records = ({'source': source, 'reason': reason} for source, reason in self._reasons.items())
        atomic_write_text(self.path, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))
