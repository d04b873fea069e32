"""Punishment of responses that say the same again and again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from align_anything.rewards.base import Completion, register_reward

# Chinese, Japanese and Korean are written without spaces, so that there each character counts as a word.
WORDS = re.compile(r'[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+')


def repeated_share(text: str, ngram: int) -> float:
    """Returns the share of the n-grams of words that stood in the text before, from 0 to below 1."""
    words = WORDS.findall(text.casefold())
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@register_reward('repetition')
def repetition(
    completions: Sequence[Completion],
    *,
    ngram: PositiveInt = 3,
    max_penalty: Annotated[float, Field(le=0, allow_inf_nan=False)] = -1.0,
) -> list[float]:
    """`max_penalty` times the share of n-grams that are repeated.

    After appendix C.2 of https://arxiv.org/abs/2502.03373, for the response as a whole and not token by token.

    Args:
        completions: the responses.
        ngram: number of words that make one n-gram.
        max_penalty: what a response gets that is one n-gram over and over; not above 0.
    """
    # Adding zero makes the zero of a response without repetition a positive one.
    return [max_penalty * repeated_share(completion.response, ngram) + 0.0 for completion in completions]
