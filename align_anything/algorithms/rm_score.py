"""Scoring with a trained reward or cost model: nothing is trained."""

from __future__ import annotations

from typing import ClassVar

from align_anything.algorithms.base import ALGORITHMS, Algorithm


@ALGORITHMS.register('rm_score')
class RMScore(Algorithm):
    """Gives every answer of the data its score."""

    name: ClassVar[str] = 'rm_score'
    task: ClassVar[str] = 'answers'
    scores: ClassVar[str] = 'responses'
    trains: ClassVar[tuple[str, ...]] = ()
