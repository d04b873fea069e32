"""The list of rows that were left out, kept in a file so that it outlives the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from align_anything.core.distributed import is_main
from align_anything.core.errors import TrainingError
from align_anything.core.files import atomic_write_text, lines_of
from align_anything.core.logging import get_logger
from align_anything.core.types import Skipped

FILE_NAME = 'skipped_samples.jsonl'
FILTERED_NAME = 'filtered_samples.jsonl'
SHOWN = 10

logger = get_logger(__name__)


def kind_of_reason(reason: str) -> str:
    """Returns a reason without what differs from row to row: quoted names, paths and numbers."""
    unquoted = re.sub(r"'[^']*'", "'…'", reason)
    return re.sub(r'\d+', 'N', re.sub(r'[^\s\']*/[^\s\']*', '…', unquoted))


def by_kind(records: Iterable[Skipped]) -> list[tuple[str, list[Skipped]]]:
    """Returns records by the kind of reason, names and numbers aside, the commonest first."""
    groups: dict[str, list[Skipped]] = {}
    for record in records:
        groups.setdefault(kind_of_reason(record.reason), []).append(record)
    return sorted(groups.items(), key=lambda entry: -len(entry[1]))


def told_once(records: Iterable[Skipped]) -> str:
    """Returns one line for each reason: how many rows have it, and the first of them."""
    rows: dict[str, list[str]] = {}
    for record in records:
        rows.setdefault(record.reason, []).append(record.source)
    return '\n'.join(
        f'- {sources[0]}{f" and {len(sources) - 1} more" if len(sources) > 1 else ""}: {reason}'
        for reason, sources in rows.items()
    )


class SkipReport:
    """The `Skipped` records of a run, each source once, in `<output_dir>/skipped_samples.jsonl`.

    Rows that are filtered, which is no failure, are counted apart and listed in `filtered_samples.jsonl`. Every rank is
    given the records of all ranks, so that all agree on the numbers; the main rank writes the files, and warns of the
    first row of each kind of reason.
    """

    def __init__(self, output_dir: str | Path, keep: int = 0, keep_filtered: int = 0) -> None:
        """Starts the lists. `keep` records of an earlier time of the run stay; what it listed later comes again."""
        self.path = Path(output_dir) / FILE_NAME
        self._reasons = _read(self.path, keep)
        self._listed = Path(output_dir) / FILTERED_NAME
        self._filtered = _read(self._listed, keep_filtered)
        if self._listed.exists() and is_main():
            atomic_write_text(self._listed, _lines(self._filtered))

    def __len__(self) -> int:
        """Number of different rows left out because they cannot be used."""
        return len(self._reasons)

    @property
    def filtered(self) -> int:
        """Number of different rows left out because they are not meant to be used."""
        return len(self._filtered)

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Files the records whose source isn't listed yet. Every rank calls it with the records of all ranks."""
        skipped = list(skipped)
        self._add_filtered({record.source: record.reason for record in skipped if record.filtered})
        new = {
            record.source: record.reason
            for record in skipped
            if not record.filtered and record.source not in self._reasons
        }
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
        # Rewritten in full, since a list that may fill a small share of the rows is short and a torn one is useless.
        atomic_write_text(self.path, _lines(self._reasons))

    def _add_filtered(self, records: dict[str, str]) -> None:
        new = {source: reason for source, reason in records.items() if source not in self._filtered}
        if new and not self._filtered and is_main():
            source, reason = next(iter(new.items()))
            logger.info('filtered %s: %s (further rows are listed in %s)', source, reason, self._listed)
        self._filtered.update(new)
        if new and is_main():
            # Appended, since filters may leave out most of the rows; a torn line behind those counted is dropped.
            with self._listed.open('a', encoding='utf-8', errors='backslashreplace') as file:
                file.write(_lines(new))

    def conclude(self) -> None:
        """Warns of how many rows were left out for each kind of reason, if any were."""
        if self._reasons and is_main():
            causes = ''.join(f'\n- {count} × {kind}' for kind, count in self._kinds().most_common(SHOWN))
            logger.warning('rows left out: %d, each listed in %s:%s', len(self), self.path, causes)
        if self._filtered and is_main():
            logger.info('rows filtered: %d, each listed in %s', self.filtered, self._listed)

    def check(self, total_rows: int, max_ratio: float) -> None:
        """Stops the run when more than `max_ratio` of `total_rows` were left out, those that are filtered aside.

        Raises:
            TrainingError: with the first records and the path of the full list.
        """
        count, total_rows = len(self), total_rows - self.filtered
        if count <= max_ratio * total_rows:
            return
        told = told_once(Skipped(source, reason) for source, reason in self._reasons.items())
        head = '\n'.join(told.splitlines()[:SHOWN])
        raise TrainingError(
            f'{count} of {total_rows} rows could not be used, data_cfgs.max_skipped_ratio={max_ratio} allows fewer. '
            f'The first of them:\n{head}\nThe full list is in {self.path}. Mend the rows, or raise max_skipped_ratio.'
        )

    def _kinds(self) -> Counter[str]:
        return Counter(map(kind_of_reason, self._reasons.values()))


def _read(path: Path, keep: int) -> dict[str, str]:
    if not path.exists():
        return {}
    records = map(json.loads, lines_of(path.read_text(encoding='utf-8'))[:keep])
    return {record['source']: record['reason'] for record in records}


def _lines(reasons: Mapping[str, str]) -> str:
    records = ({'source': source, 'reason': reason} for source, reason in reasons.items())
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
