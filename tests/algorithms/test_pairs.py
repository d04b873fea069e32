"""Soft labels: a pair counts in either order, each with its probability, and ties are no measure of accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from align_anything.algorithms.base import find_algorithm
from align_anything.algorithms.cost_model import CostModel
from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.kto import KTO
from align_anything.algorithms.online_dpo import OnlineDPO
from align_anything.algorithms.rm import RM
from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Batch, Scored
from align_anything.datasets.formatters.preference import Preference
from align_anything.datasets.formatters.text_to_image import Pickapic
from align_anything.datasets.preference import AnswersTask, PreferenceTask, UnpairedTask
from tests.datasets.fakes import encode_group

BETA = 0.3
PICKED = {'caption': 'A fox', 'jpg_0': b'0', 'jpg_1': b'1', 'label_0': 1, 'label_1': 0}
TIED = {**PICKED, 'label_0': 0.5, 'label_1': 0.5}


def batch(*labels: float | None) -> Batch:
    """Pairs whose responses have two units each, with a reference; those with None have no soft label."""
    count = 2 * len(labels)
    metas: list[dict[str, Any]] = [{} if label is None else {'soft_label': label} for label in labels]
    made = torch.Generator().manual_seed(0)
    return Batch(
        None,
        torch.arange(count).repeat_interleave(2),
        torch.ones(2 * count),
        count,
        torch.arange(count) // 2,
        [''] * len(labels),
        metas,
        per_unit={'reference': torch.randn(2 * count, generator=made, dtype=torch.float64)},
    )


def sampled(made: Batch) -> torch.Tensor:
    return torch.randn(len(made.segments), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def totals(algorithm: Any, made: Batch, values: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts of the terms."""
    terms, counts = algorithm.terms(made, Scored(values), {}), algorithm.counts(made)
    return {key: float(value) for key, value in terms.items()}, {key: float(value) for key, value in counts.items()}


def test_dpo_with_soft_labels_is_conservative_dpo_with_a_chance_of_each_row() -> None:
    labels = [None, 0.5, 0.75, 1.0]
    made = batch(*labels)
    values = sampled(made)
    sums, counts = totals(DPO(scale_coeff=BETA, sft_coeff=0.1), made, values)
    lead = BETA * (values - made.per_unit['reference']).view(-1, 2, 2).sum(-1).diff(dim=1).neg().flatten().numpy()
    p = np.array([1.0, 0.5, 0.75, 1.0])
    expected = p * np.logaddexp(0, -lead) + (1 - p) * np.logaddexp(0, lead)
    assert sums['preference_loss'] == pytest.approx(expected.sum(), rel=1e-12)
    assert sums['reward_margin'] == pytest.approx(lead[[0, 2, 3]].sum(), rel=1e-12)
    assert counts['preference_loss'] == 4 and counts['reward_accuracy'] == counts['reward_margin'] == 3
    responses = values.view(-1, 2, 2).sum(-1).numpy()
    assert sums['sft_loss'] == pytest.approx(-(p * responses[:, 0] + (1 - p) * responses[:, 1]).sum(), rel=1e-12)
    assert counts['sft_loss'] == 8


@pytest.mark.parametrize('name', ['dpo', 'orpo', 'simpo', 'cpo'])
def test_a_soft_label_counts_a_pair_in_either_order(name: str) -> None:
    values = -sampled(batch(0.75)).abs()
    turned = values.view(2, 2).flip(0).flatten()
    algorithm = find_algorithm(name)()

    def loss(label: float | None, of: torch.Tensor) -> float:
        made = batch(label)
        made.per_unit['reference'] = torch.zeros_like(of)
        return totals(algorithm, made, of)[0]['preference_loss']

    assert loss(0.75, values) == pytest.approx(0.75 * loss(None, values) + 0.25 * loss(None, turned), rel=1e-12)
    assert loss(0.5, values) == pytest.approx(loss(0.5, turned), rel=1e-12)
    assert loss(1.0, values) == loss(None, values)


def test_a_hard_pair_beside_a_tie_may_be_far_apart() -> None:
    made = batch(None, 0.5)
    values = (1e4 * torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0])).requires_grad_()
    made.per_unit['reference'] = torch.zeros(8)
    # The reversed loss of the first pair would be e to the power of some thousands.
    DPO(loss_type=['discopop']).terms(made, Scored(values), {})['preference_loss'].backward()
    assert values.grad.isfinite().all()


def test_an_empty_micro_batch_has_no_pairs() -> None:
    empty = Batch(None, torch.zeros(0, dtype=torch.long), torch.zeros(0), 1, torch.zeros(1), [''], [{}])
    sums, counts = totals(DPO(), empty, torch.zeros(0))
    assert set(sums.values()) == {0.0} and set(counts.values()) == {0.0}


def test_pairs_of_scores_are_what_the_scores_say() -> None:
    made = batch(0.5)
    values = sampled(made)
    assert totals(OnlineDPO(), made, values) == totals(OnlineDPO(), batch(None), values)


def test_who_reads_soft_labels() -> None:
    assert all(find_algorithm(name).soft_labels for name in ('rm', 'dpo', 'orpo', 'simpo', 'cpo'))
    assert not any(kind.soft_labels for kind in (CostModel, KTO, OnlineDPO))
    formatter = Pickapic(keep_ties=True)
    _, meta = PreferenceTask(encode_group, judged=True, soft_labels=RM.soft_labels).format(formatter, TIED)
    assert meta['soft_label'] == 0.5
    for task in (PreferenceTask(encode_group), UnpairedTask(encode_group), AnswersTask(encode_group)):
        with pytest.raises(DataError, match='only rm and losses of pairs .* read it: leave out the option'):
            task.format(formatter, TIED, PICKED)
        assert 'soft_label' not in task.format(formatter, PICKED, PICKED)[1]
    assert not Pickapic().check_validation(TIED)


def test_a_column_may_say_how_likely_the_chosen_answer_is_the_better_one() -> None:
    task, template = PreferenceTask(encode_group, soft_labels=True), Preference(soft_label='share')
    row = {'prompt': 'Name a fish.', 'chosen': 'A trout.', 'rejected': 'A whale.'}

    def formatted(share: Any) -> tuple[str, float]:
        (first, _), meta = task.format(template, {**row, 'share': share})
        return first[-1]['content'], meta['soft_label']

    assert formatted(0.75)[1] == 0.75 and formatted('0.5')[1] == 0.5
    assert formatted(0.75)[0] == 'A trout.' and formatted(0.25) == ('A whale.', 0.75)
    for wrong, problem in ((1.5, 'from 0 to 1'), (-0.1, 'from 0 to 1'), ('most', 'should be a number'), (None, 'null')):
        with pytest.raises(SampleError, match=problem):
            task.format(template, {**row, 'share': wrong})
    with pytest.raises(SampleError, match='share'):
        task.format(template, row)
    assert 'soft_label' not in task.format(Preference(), {**row, 'share': 0.5})[1]
