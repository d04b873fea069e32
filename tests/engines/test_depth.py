"""The loss of further codes: a sum over them, divided by their number in the whole step."""

from __future__ import annotations

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.core.types import Batch, Scored
from align_anything.engines.by_kind import ByKind
from align_anything.engines.depth import WithDepth, with_depth
from align_anything.engines.step import asked_of


def batch(weights: list[float]) -> Batch:
    number = len(weights)
    return Batch(
        inputs=None,
        segments=torch.zeros(number, dtype=torch.long),
        weights=torch.tensor(weights),
        num_responses=1,
        examples_of_responses=torch.zeros(1, dtype=torch.long),
        sources=['row'],
        metas=[{}],
        kinds={'audio': torch.ones(number, dtype=torch.bool)},
    )


def test_the_term_is_the_mean_over_further_codes() -> None:
    objective = with_depth(ByKind(SFT(depth_loss_coef=0.5)), 0.5, 3)
    assert asked_of(objective) == {'entropy': False, 'further': True}
    assert objective.coefficients() == {'loss': 1.0, 'depth_loss': 0.5}
    given = batch([1.0, 2.0])
    counts = objective.counts(given)
    assert float(counts['depth_loss']) == 9 and float(counts['loss']) == float(counts['loss/audio']) == 3
    further = torch.tensor([-6.0, -1.5], requires_grad=True)
    terms = objective.terms(given, Scored(torch.tensor([-1.0, -2.0]), further=further), {})
    assert float(terms['depth_loss']) == pytest.approx(9.0) and float(terms['loss']) == pytest.approx(5.0)
    terms['depth_loss'].backward()
    assert further.grad.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(('coefficient', 'codes'), [(None, 3), (1.0, 0)])
def test_there_is_none_without_further_codes_or_where_they_stay(coefficient: float | None, codes: int) -> None:
    objective = ByKind(SFT())
    assert with_depth(objective, coefficient, codes) is objective and asked_of(objective) == {'entropy': False}


def test_a_coefficient_of_zero_leaves_a_metric() -> None:
    assert type(with_depth(ByKind(SFT()), 0.0, 3)) is WithDepth
