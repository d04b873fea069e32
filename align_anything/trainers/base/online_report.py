"""The metrics of an online run: what was drawn and what it was worth, and how the updates on it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from align_anything.algorithms.critic import Critic
from align_anything.algorithms.online import Online
from align_anything.core.types import Example
from align_anything.engines.window import WindowResult, combined
from align_anything.losses.moments import mean_and_variance, moments
from align_anything.losses.value import explained_variance
from align_anything.trainers.base.experience import Drawn, responses_of

ReduceSum = Callable[[Tensor], Tensor]


def numbers_of(drawn: Drawn) -> dict[str, Tensor]:
    """Numbers of each response, `(R,)`, whose means are told."""
    responses = drawn.all_responses
    return {
        'reward': drawn.scores,
        **{f'reward/{name}': values for name, values in drawn.rewards.items() if len(drawn.rewards) > 1},
        'response_length': torch.tensor([float(len(response.ids)) for response in responses]),
        'truncated': torch.tensor([float(not response.finished) for response in responses]),
        'repetition': torch.tensor([repetition(response.ids.tolist()) for response in responses]),
    }


def rollout_metrics(drawn: Drawn, trained: Sequence[Example], reduce_sum: ReduceSum) -> dict[str, float]:
    """What was drawn, over all ranks; every rank calls it.

    `trained` are the responses that are learned from, with their log-probabilities by the trainer.
    """
    numbers = numbers_of(drawn)
    drift = [
        float((response.known['old'] - response.known['rollout']).abs().sum()) for response in responses_of(trained)
    ]
    local = [float(len(drawn.scores)), sum(drift), *(float(values.sum()) for values in numbers.values())]
    count, drifted, *sums = reduce_sum(torch.tensor(local, dtype=torch.float64)).tolist()
    totals = dict(zip(numbers, sums, strict=True))
    _, variance = mean_and_variance(reduce_sum(moments(drawn.scores, torch.ones(len(drawn.scores)))))
    return {
        **{name: total / max(count, 1.0) for name, total in totals.items()},
        'reward_std': float(variance.sqrt()),
        'rollout_drift': drifted / max(totals['response_length'], 1.0),
        'responses': count,
    }


def update_metrics(results: Sequence[WindowResult], algorithm: Online) -> dict[str, float]:
    """How the optimizer steps on one rollout went."""
    whole = combined(results, algorithm)
    return {'loss': whole.loss, **whole.terms}


def critic_metrics(role: str, results: Sequence[WindowResult], critic: Critic) -> dict[str, float]:
    """The same of a critic."""
    terms = combined(results, critic).terms
    return {
        f'{role}/value_loss': terms['value_loss'],
        f'{role}/return': terms['returns'],
        f'{role}/explained_variance': explained_variance(terms),
    }


def repetition(ids: Sequence[int], size: int = 4) -> float:
    """The share of runs of `size` tokens that stood in the response before."""
    runs = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
