"""How long an audio clip is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from align_anything.core.types import Audio
from align_anything.rewards.base import Completion, Values, register_reward
from align_anything.rewards.media import SOUNDS, Missing, mean_by_response, sounds_of

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _in_order(target: float | tuple[float, float]) -> tuple[float, float]:
    shortest, longest = target if isinstance(target, tuple) else (target, target)
    if shortest > longest:
        raise ValueError(f'the shorter length stands first, but {shortest} is above {longest}')
    return shortest, longest


@register_reward('duration', reads=SOUNDS)
def duration(
    completions: Sequence[Completion],
    *,
    target: Annotated[Seconds | tuple[Seconds, Seconds], AfterValidator(_in_order)],
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
    missing: Missing = 0.0,
) -> Values:
    """1 for an audio clip of the wanted length, less in a line outside of it, and 0 from `margin` seconds on.

    Args:
        completions: the responses.
        target: seconds, or the shortest and the longest.
        margin: seconds past the target that are worth nothing.
        missing: reward of a response without audio; None abstains.
    """
    shortest, longest = target

    def worth(sound: Audio) -> float:
        seconds = len(sound.samples) / sound.rate
        return max(0.0, 1 - max(shortest - seconds, seconds - longest, 0.0) / margin)

    return mean_by_response(completions, sounds_of, lambda sounds, owners: [worth(sound) for sound in sounds], missing)
