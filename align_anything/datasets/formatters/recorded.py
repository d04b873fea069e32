"""What the templates of recorded episodes share: choosing cameras and numbers, and saying what there is instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.registry import nearest
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row
from align_anything.datasets.formatters.turns import Sample
from align_anything.datasets.trajectories import Trajectory, turns_of


class Recorded(BaseFormatter):
    """Rows that are episodes of a body.

    Attributes:
        cameras: those whose pictures are shown, in this order; by default all of them.
        states: the numbers of the body that are told, by their names; which by default, the template says.
        instruction: what was to be done, where the recording does not say it.
        rotate: degrees counter-clockwise by which pictures are turned, which a camera took the wrong way up.
        flip: `horizontal` or `vertical`, for pictures that are mirrored.
    """

    cameras: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    instruction: str = ''
    rotate: int = 0
    flip: str = ''

    def trajectory(self, row: Row) -> Trajectory:
        """Returns the episode of a row."""
        raise NotImplementedError

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        turns, meta = turns_of(self.trajectory(raw_sample))
        return [*self.opening(), *turns], meta

    def picture_options(self) -> dict[str, Any]:
        """Returns how pictures are turned."""
        return {name: value for name, value in (('rotate', self.rotate), ('flip', self.flip)) if value}

    def asked(self, said: str) -> str:
        """Returns what was to be done: as the option says, else the recording. Raises SampleError for neither."""
        told = self.instruction or said.strip()
        if not told:
            raise SampleError(
                'nothing says what was to be done in the episode: set the template option instruction '
                "(train_template_kwargs {instruction: 'pick up the cup'})."
            )
        return told


def chosen(what: str, wanted: Sequence[str], there: Iterable[str], usual: Sequence[str] = ()) -> list[str]:
    """Returns the names that are wanted, or without those the `usual` ones that there are.

    Raises SampleError, with the names of what there is, for one that there is not.
    """
    known = list(there)
    missing = next((name for name in wanted if name not in known), None)
    if missing is not None:
        raise SampleError(
            f"the episode has no {what} '{missing}'.{nearest(missing, known)} It has: {', '.join(known) or 'none'}."
        )
    return list(wanted) or [name for name in usual if name in known]
