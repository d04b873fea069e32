"""Reward models read soft labels, and count ties in their losses alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align_anything.algorithms.rm import RM
from align_anything.core.types import Batch, Scored

SCORES = torch.tensor([2.0, -1.0, 0.5, 1.5, -2.0, 0.25])


def batch(*labels: float | None) -> Batch:
    """Pairs of responses; those with None have no soft label."""
    count = 2 * len(labels)
    metas: list[dict[str, Any]] = [{} if label is None else {'soft_label': label} for label in labels]
    responses = torch.arange(count)
    return Batch(None, responses, torch.ones(count), count, responses // 2, [''] * len(labels), metas)


def terms(*labels: float | None) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts of the terms."""
    made = batch(*labels)
    found = RM().terms(made, Scored(SCORES[: 2 * len(labels)]), {})
    return {key: float(value) for key, value in found.items()}, {
        key: float(value) for key, value in RM().counts(made).items()
    }


def test_a_tie_pulls_both_scores_together_and_is_no_measure_of_accuracy() -> None:
    sums, counts = terms(None, 0.5, None)
    hard = [terms(None)[0], {'preference_loss': 0.0}]
    lead = torch.tensor([3.0, -1.0, -2.25])
    soft = torch.tensor([1.0, 0.5, 1.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(lead, soft, reduction='sum')
    assert sums['preference_loss'] == pytest.approx(float(expected), rel=1e-6)
    assert counts['preference_loss'] == 3 and counts['reward_accuracy'] == counts['overconfidence'] == 2
    assert sums['reward_accuracy'] == 1 and sums['chosen_reward'] == pytest.approx(0.0)
    assert hard[0]['preference_loss'] == pytest.approx(float(-torch.nn.functional.logsigmoid(lead[0])), rel=1e-6)


def test_a_label_of_one_is_a_hard_one() -> None:
    assert terms(1.0, 1.0) == terms(None, None)
