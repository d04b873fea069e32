"""How many episodes failed lately, and when that is too much for a run to go on."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.core.errors import WorldError
from align_anything.core.types import Skipped
from align_anything.datasets.skips import by_kind

FEW, WINDOW = 20, 100
"""Episodes that failures are a share of, at least; and about how many of the last ones are counted."""
NAMED = 3
"""Kinds of failures that an error names, the commonest first."""
Counts = list[list[int]]
"""Of each of the last calls how many episodes failed on all ranks, how many there were, and of how many rows."""


def counted(counts: Counts, failed: int, episodes: int, rows: int) -> Counts:
    """Returns the counts with those of a further call, and without those that lie too far back."""
    found = [*counts, [failed, episodes, rows]]
    while len(found) > 1 and sum(number for _, number, _ in found[1:]) >= WINDOW:
        found = found[1:]
    return found


def check_failures(counts: Counts, most: float, failures: Sequence[Skipped], trace: str) -> None:
    """Raises WorldError, with the first of the last `failures`, where more than a share of `most` failed lately.

    And where nothing is left, whatever that share: where all episodes of the last call failed that were of several
    rows, or of one as those before. One row alone may be broken.
    """
    failed, total, _ = map(sum, zip(*counts, strict=True))
    now, episodes, rows = counts[-1]
    if failed > most * max(total, FEW):
        problem = (
            f'{failed} of the last {total} episodes failed, where a share of {most:g} may '
            '(environment_cfgs.max_failures).'
        )
    elif now == episodes > 0 and (rows > 1 or (len(counts) > 1 and failed == total)):
        problem = f'all of the last {failed if failed == total else now} episodes failed, so that nothing is left.'
    else:
        return
    raise WorldError(f'{problem}{_named(failures)}\n{trace}'.rstrip())


def require_some(counts: Counts) -> None:
    """Raises WorldError where nothing but failures came of the last calls, at the end of a run."""
    failed, total = (sum(own[number] for own in counts) for number in (0, 1))
    if failed == total > 0:
        raise WorldError(f'all of the last {total} episodes failed; failed_episodes.jsonl has the reasons.')


def _named(failures: Sequence[Skipped]) -> str:
    """The first failure of each kind, and how many there are."""
    told = [f'{own[0].source}: {own[0].reason} ({len(own)} of them)' for _, own in by_kind(failures)[:NAMED]]
    return f' The first, of {"; of ".join(told)}' if told else ''
