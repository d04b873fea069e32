"""The only update on a rollout: the scores of the policy that sampled are those that it makes itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_anything.algorithms.grpo import GRPO
from align_anything.core.types import Batch, Scored
from align_anything.engines.on_policy import OnPolicy
from align_anything.policies.token.collator import TokenCollator
from tests.engines.test_by_kind import RESPONSES, WritingFamily, batch_of, scored_of


def told(objective: object, batch: Batch, scored: Scored) -> dict[str, float]:
    terms, counts = objective.terms(batch, scored, {}), objective.counts(batch)
    assert terms.keys() == counts.keys()
    return {name: float(terms[name].detach() / counts[name]) for name in terms if counts[name]}


@pytest.mark.parametrize('cap', [None, 1.5])
@pytest.mark.parametrize('loss_type', ['ppo', 'cispo'])
def test_loss_and_gradient_are_those_of_scores_that_were_made_before(loss_type: str, cap: float | None) -> None:
    batch = batch_of(*RESPONSES, old=0, rollout=0, reference=0, advantage=0)
    algorithm = GRPO(num_generations=2, beta=0.1, ptx_coeff=0.0, loss_type=loss_type, rollout_correction_cap=cap)
    assert not algorithm.reads_old
    found, grads = [], []
    for objective in (algorithm, OnPolicy(algorithm)):
        scored = scored_of(batch)
        before = {**batch.per_unit, 'old': scored.values.detach().clone()}
        if objective is not algorithm:
            del before['old']
        own = replace(batch, per_unit=before)
        found.append(told(objective, own, scored))
        terms, counts = objective.terms(own, scored, {}), objective.counts(own)
        weights = objective.coefficients()
        sum(weights[name] * terms[name] / counts[name] for name in weights).backward()
        grads.append(scored.values.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
    drift = found[1].pop('rollout_drift')
    assert found[1] == found[0] and found[1]['ratio'] == 1
    values = scored_of(batch).values.detach()
    assert drift == pytest.approx(float((values - batch.per_unit['rollout']).abs().mean()), rel=1e-6)


def test_a_rank_without_responses_adds_up_the_same_numbers() -> None:
    batch = batch_of(*RESPONSES, old=0, rollout=0, reference=0, advantage=0)
    empty = TokenCollator(WritingFamily(), 'packed')([])
    objective = OnPolicy(GRPO(num_generations=2, beta=0.1, ptx_coeff=0.0))
    assert list(objective.counts(empty)) == list(objective.counts(batch))
    assert float(objective.counts(empty)['rollout_drift']) == 0
