"""How large a picture is as a JPEG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from align_anything.rewards.base import Completion, Values, register_reward
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of

KILOBYTE = 1000


@register_reward('jpeg_size', reads=PICTURES)
def jpeg_size(
    completions: Sequence[Completion],
    *,
    sign: Literal[-1, 1] = -1,
    quality: Annotated[int, Field(ge=1, le=95)] = 95,
    missing: Missing = 0.0,
) -> Values:
    """Kilobytes of a picture as a JPEG file, negative where plain pictures are to be worth more.

    Compressibility and incompressibility of DDPO (Black et al., 2023, arXiv:2305.13301), whose quality is 95.

    Args:
        completions: the responses.
        sign: -1 rewards pictures that compress well, 1 those that do not.
        quality: quality of the JPEG file.
        missing: reward of a response without a picture; None abstains.
    """
    return mean_by_response(
        completions,
        pictures_of,
        lambda pictures, owners: [sign * kilobytes(picture, quality) for picture in pictures],
        missing,
    )


def kilobytes(picture: Any, quality: int) -> float:
    """Returns the size of a picture as a JPEG file, in thousands of bytes."""
    file = io.BytesIO()
    picture.convert('RGB').save(file, format='JPEG', quality=quality)
    return len(file.getvalue()) / KILOBYTE
