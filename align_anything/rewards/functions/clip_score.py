"""How well a picture fits the text that asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import PositiveInt

from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.frozen import (
    PICTURES_AND_TEXT,
    Device,
    checkpoint_for,
    frozen,
    pictures_embedded,
    texts_embedded,
)
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of


@register_reward('clip_score', reads=PICTURES)
def clip_score(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(PICTURES_AND_TEXT)],
    column: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """Cosine of a picture and the text that asked for it, -1 to 1, by a model such as CLIP.

    CLIPScore (Hessel et al., 2021, arXiv:2104.08718) is 2.5 times it, where it is above 0.

    Args:
        completions: the responses.
        model: checkpoint: CLIP, SigLIP and their like, also those trained on preferences, such as PickScore's.
        column: column of the row with the text; None is the text of the last user turn.
        device: where the model runs; None is the device of this rank.
        batch_size: pictures and texts in one pass.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row has no text.
    """

    def cosines(pictures: list, owners: list[Completion]) -> list[float]:
        clip = frozen(model, PICTURES_AND_TEXT, device)
        texts = texts_embedded(clip, [text_asked_for(owner, column) for owner in owners], batch_size)
        return (pictures_embedded(clip, pictures, batch_size) * texts).sum(-1).tolist()

    return mean_by_response(completions, pictures_of, cosines, missing)
