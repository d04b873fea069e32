"""Online DPO: the best and the worst of the responses that the policy has just generated are a pair to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.dpo import DPOLosses
from align_anything.algorithms.online import GroupBased
from align_anything.algorithms.referring import Reference


@ALGORITHMS.register('online_dpo')
class OnlineDPO(DPOLosses, GroupBased, Reference):
    """DPO on pairs of the policy's own (Guo et al., 2024, arXiv:2402.04792), by score instead of by a judge.

    A prompt whose responses all score alike gives no pair.
    """

    name: ClassVar[str] = 'online_dpo'
    task: ClassVar[str] = 'prompt'
    compares: ClassVar[bool] = True
    soft_labels: ClassVar[bool] = False

    num_generations: PositiveInt = Field(
        2, ge=2, description='Responses for each prompt; the best and the worst are the pair.'
    )

    @property
    def trained_responses(self) -> int:
        return 2

    def kept(self, scores: Sequence[Tensor]) -> list[list[int]]:
        return [[int(worth.argmax()), int(worth.argmin())] if worth.max() > worth.min() else [] for worth in scores]
