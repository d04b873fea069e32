"""The answer means the same mathematics as the golden one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from align_anything.core.logging import get_logger
from align_anything.rewards.answers import answer_of
from align_anything.rewards.base import Completion, ground_truth, register_reward
from align_anything.rewards.math_checker import math_checker

logger = get_logger(__name__)


@register_reward('math', needs={'math_verify': 'math'})
def math(
    completions: Sequence[Completion], *, timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
) -> list[float]:
    r"""1 for an answer equal to `meta['ground_truth']`, 0 for any other, and for a part of it.

    The answer is what stands in `<answer>…</answer>`, else what follows `</think>`, else the whole response; in it
    `\boxed{27}`, `$27$`, `The answer is 27.` and a plain `27` are read. Formulas are compared by math-verify; lists,
    intervals, coordinates, bases and units as `docs/rewards.md` says; words as text, whatever their case.

    Args:
        completions: the responses.
        timeout: seconds of computing after which an answer that is not compared yet gets 0.

    Raises:
        RewardError: a row has no golden answer.
    """
    return [_accuracy(completion, timeout) for completion in completions]


def _accuracy(completion: Completion, timeout: float) -> float:
    equal = math_checker().equal(ground_truth(completion), answer_of(completion.answer), timeout)
    if equal is None:
        logger.warning(
            'the golden answer of %s is a sentence, and only the same words are equal to it: put its result into '
            r'\boxed{} or after ####',
            completion.source,
        )
    return float(equal is True)
