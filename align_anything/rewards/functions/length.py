"""Soft punishment of responses that are about to grow too long."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt

from align_anything.rewards.base import Completion, register_reward


@register_reward('length')
def length(completions: Sequence[Completion], *, max_length: PositiveInt, cache: PositiveInt) -> list[float]:
    """0 up to `max_length - cache` tokens, from there falling in a line to -1 at `max_length`, and -1 past it.

    Eq. 13 of DAPO, https://arxiv.org/abs/2503.14476, where `max_length` is 20480 and `cache` 4096.

    Args:
        completions: the responses.
        max_length: tokens from which on a response gets the whole punishment.
        cache: tokens before that in which the punishment grows.
    """
    return [min(0.0, max(-1.0, (max_length - cache - completion.length) / cache)) for completion in completions]
