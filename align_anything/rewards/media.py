"""The media of responses, as reward functions read them, and one number for each response out of numbers of media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from align_anything.core.errors import RewardError
from align_anything.core.types import Audio, MediaKind, decoded_medium
from align_anything.rewards.base import Completion, Values

Missing = Annotated[float, Field(allow_inf_nan=False)] | None
"""Reward of a response without a medium of the kind; None abstains."""

PICTURES: tuple[MediaKind, ...] = ('image', 'video')
"""What `pictures_of` finds something in."""
SOUNDS: tuple[MediaKind, ...] = ('audio',)


def media_of(completion: Completion, kind: MediaKind) -> list[Any]:
    """Returns the decoded media of a kind in a response, in order.

    Raises `RewardError` for codes that their codec could not decode, and for a medium that was not sent.
    """
    parts = [part for part in completion.message['content'] if part['type'] == kind]
    media = [decoded_medium(part) for part in parts]
    for part, medium in zip(parts, media, strict=True):
        if medium is None and part.get(kind) is None:
            raise RewardError(
                f'the {kind} in a response to {completion.source} was not sent: set model_cfgs.remote_rm_send_media.'
            )
        if medium is None:
            raise RewardError(
                f'the codec of the {kind} in a response to {completion.source} cannot decode, so there is nothing to '
                'judge but codes. Give the model a codec with a decoder, or use a reward that reads text.'
            )
    return media


def pictures_of(completion: Completion) -> list[Any]:
    """Returns the images of a response as PIL images, and the frames of its videos."""
    from PIL import Image

    frames = [Image.fromarray(frame) for video in media_of(completion, 'video') for frame in video.frames]
    return [*media_of(completion, 'image'), *frames]


def sounds_of(completion: Completion) -> list[Audio]:
    """Returns the audio clips of a response."""
    return media_of(completion, 'audio')


def mean_by_response(
    completions: Sequence[Completion],
    media_of_response: Callable[[Completion], list[Any]],
    score: Callable[[list[Any], list[Completion]], Sequence[float]],
    missing: float | None,
) -> Values:
    """Returns the mean score of the media of each response, `missing` where it has none.

    Args:
        completions: the responses.
        media_of_response: their media.
        score: gives a number to each medium, of all responses in one call, and of each the response it stands in.
        missing: reward of a response without media.
    """
    media = [media_of_response(completion) for completion in completions]
    flat = [item for own in media for item in own]
    owners = [completion for completion, own in zip(completions, media, strict=True) for _ in own]
    scores = iter(score(flat, owners) if flat else [])
    means = []
    for own in media:
        values = [next(scores) for _ in own]
        means.append(sum(values) / len(values) if values else missing)
    return means
