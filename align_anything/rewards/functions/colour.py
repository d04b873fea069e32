"""How much of a picture has a colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from PIL import ImageColor
from pydantic import AfterValidator, Field

from align_anything.core.errors import RewardError
from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of

RGB = tuple[int, int, int]
CHANNEL = Annotated[int, Field(ge=0, le=255)]


def rgb(colour: Any) -> RGB:
    """Returns a colour as red, green and blue from 0 to 255. Raises ValueError for a name or text of none."""
    return ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else tuple(colour)


@register_reward('colour', reads=PICTURES)
def colour(
    completions: Sequence[Completion],
    *,
    colour: Annotated[str | tuple[CHANNEL, CHANNEL, CHANNEL], AfterValidator(rgb)] | None = None,
    column: str | None = None,
    tolerance: CHANNEL = 64,
    missing: Missing = 0.0,
) -> Values:
    """Share of the pixels of a picture that are near a colour, 0 to 1.

    Args:
        completions: the responses.
        colour: a name such as `red`, a text such as `#ff0000`, or red, green and blue; None is the colour that the row
            asks for.
        column: column of the row that says its colour; None is the first name of a colour in the last user turn.
        tolerance: by how much each of red, green and blue may differ, of 255.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row asks for no colour.
    """
    return mean_by_response(
        completions,
        pictures_of,
        lambda pictures, owners: [
            share_near(picture, asked_for(owner, column) if colour is None else colour, tolerance)
            for picture, owner in zip(pictures, owners, strict=True)
        ],
        missing,
    )


def share_near(picture: Any, wanted: RGB, tolerance: int) -> float:
    """Returns the share of the pixels whose red, green and blue all differ by at most `tolerance`."""
    distances = np.abs(np.asarray(picture.convert('RGB'), np.int16) - np.array(wanted, np.int16))
    return float((distances <= tolerance).all(-1).mean())


def asked_for(completion: Completion, column: str | None) -> RGB:
    """Returns the colour that a row asks for. Raises `RewardError` for none."""
    text = text_asked_for(completion, column)
    if column is not None:
        try:
            return rgb(text.strip())
        except ValueError as error:
            raise RewardError(f"{completion.source}: meta['{column}'] is no colour: {error}.") from error
    names = [word for word in re.findall(r'[a-z]+', text.casefold()) if word in ImageColor.colormap]
    if not names:
        raise RewardError(
            f'{completion.source} names no colour in its last user turn. Give the option colour, or the column that '
            'has it (option column).'
        )
    return rgb(names[0])
