"""How well an audio clip fits the text that asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import PositiveInt

from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.frozen import (
    SOUNDS_AND_TEXT,
    Device,
    checkpoint_for,
    frozen,
    sounds_embedded,
    texts_embedded,
)
from align_anything.rewards.media import SOUNDS, Missing, mean_by_response, sounds_of


@register_reward('clap_score', reads=SOUNDS)
def clap_score(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(SOUNDS_AND_TEXT)],
    column: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """Cosine of an audio clip and the text that asked for it, -1 to 1, by a CLAP model.

    A clip is resampled to the rate of the model; one that is longer than the model hears at once counts as the mean of
    its stretches.

    Args:
        completions: the responses.
        model: checkpoint of CLAP.
        column: column of the row with the text; None is the text of the last user turn.
        device: where the model runs; None is the device of this rank.
        batch_size: clips and texts in one pass.
        missing: reward of a response without audio; None abstains.

    Raises:
        RewardError: a row has no text.
    """

    def cosines(sounds: list, owners: list[Completion]) -> list[float]:
        clap = frozen(model, SOUNDS_AND_TEXT, device)
        texts = texts_embedded(clap, [text_asked_for(owner, column) for owner in owners], batch_size)
        return (sounds_embedded(clap, sounds, batch_size) * texts).sum(-1).tolist()

    return mean_by_response(completions, sounds_of, cosines, missing)
