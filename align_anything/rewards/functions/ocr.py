"""Whether the text that was asked for can be read in a picture."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from typing import Any

from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.edit_distance import error_rate
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|「([^」]+)」')
# The reader keeps what it is at in itself.
_READING = threading.Lock()


@register_reward('ocr', needs={'rapidocr': 'ocr', 'onnxruntime': 'ocr'}, reads=PICTURES)
def ocr(completions: Sequence[Completion], *, column: str | None = None, missing: Missing = 0.0) -> Values:
    """1 for a picture in which the text that was asked for stands, less for each wrong character, at least 0.

    `1 - min(d, n) / n` with the edit distance `d` to the text of `n` characters, without spaces and in lower case, as
    Flow-GRPO has it (Liu et al., 2025, arXiv:2505.05470). It is read by RapidOCR, which brings its models along.

    Args:
        completions: the responses.
        column: column of the row with the text. None is what stands in double quotation marks in the last user turn;
            all of the turn where nothing does.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row has no text.
    """
    return mean_by_response(
        completions,
        pictures_of,
        lambda pictures, owners: [
            likeness(text_in(picture), asked_for(owner, column))
            for picture, owner in zip(pictures, owners, strict=True)
        ],
        missing,
    )


def asked_for(completion: Completion, column: str | None) -> str:
    """Returns the text that a picture is to show. Raises `RewardError` for none."""
    text = text_asked_for(completion, column)
    quoted = [''.join(found) for found in QUOTED.findall(text) if column is None]
    return ' '.join(quoted) or text


def likeness(read: str, wanted: str) -> float:
    """Returns 1 where the text is in what was read, else 1 less the share of its characters that are wrong."""
    read, wanted = (''.join(text.casefold().split()) for text in (read, wanted))
    return 1.0 if wanted in read else max(0.0, 1 - error_rate(read, wanted))


def text_in(picture: Any) -> str:
    """Returns the text in a PIL image, line by line from the top."""
    import numpy as np

    pixels = np.asarray(picture.convert('RGB'))[:, :, ::-1]  # blue first, as OpenCV has it
    with _READING:
        lines = _reader()(np.ascontiguousarray(pixels)).txts
    return ' '.join(lines or ())


@functools.cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={'Global.log_level': 'critical'})
