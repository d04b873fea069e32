"""How bright a picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from align_anything.rewards.base import Completion, Values, register_reward
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of


@register_reward('brightness', reads=PICTURES)
def brightness(
    completions: Sequence[Completion],
    *,
    target: Annotated[float, Field(ge=0, le=1)] | None = None,
    missing: Missing = 0.0,
) -> Values:
    """Mean luma of a picture (ITU-R BT.601), 0 for black and 1 for white.

    Args:
        completions: the responses.
        target: luma that is worth 1; one that differs by `d` is worth `1 - d`. None is worth the luma itself.
        missing: reward of a response without a picture; None abstains.
    """

    def worth(picture: Any) -> float:
        luma = float(np.asarray(picture.convert('L'), np.float64).mean()) / 255
        return luma if target is None else 1 - abs(luma - target)

    return mean_by_response(
        completions, pictures_of, lambda pictures, owners: [worth(picture) for picture in pictures], missing
    )
