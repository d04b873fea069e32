"""How often one checkpoint is scored above another."""

from __future__ import annotations

import numpy as np

from align_anything.core.errors import DataError
from align_anything.metrics import statistics
from align_anything.metrics.base import Measured, register_metric
from align_anything.metrics.samples import Sample, Samples


@register_metric('win_rate', compares=True)
def win_rate(samples: Samples, others: Samples, *, score: str | None = None) -> Measured:
    """How often a response scores higher than one of the other checkpoint to the same prompt; ties are half.

    Both runs must have been scored by the same reward model or reward functions. Over 0.5 is better than the other.

    Args:
        samples: the responses.
        others: those of the other checkpoint.
        score: name of the score, such as `model` for the reward model; None is the weighted sum of all.
    """
    values: list[float | None] = []
    for sample in samples:
        rivals = [score_of(other, score) for other in others.by_prompt.get(sample.prompt, ())]
        known, own = [rival for rival in rivals if rival is not None], score_of(sample, score)
        values.append(statistics.win_rate(np.array([own]), np.array(known)) if known and own is not None else None)
    return Measured(values, details={'ties': values.count(statistics.TIE), 'not_compared': values.count(None)})


def score_of(sample: Sample, name: str | None) -> float | None:
    """Returns a score of a response, of None the weighted sum; None where the reward abstained.

    Raises DataError where it was never scored so.
    """
    response = sample.response
    scores = response.get('scores', {}) if name else {'score': response['score']} if 'score' in response else {}
    if (name or 'score') not in scores:
        raise DataError(
            f'the responses in {sample.folder} have no score{"" if name is None else f" {name!r}"}: evaluate with '
            'reward_model_name_or_path or reward_functions.'
        )
    return scores[name or 'score']
