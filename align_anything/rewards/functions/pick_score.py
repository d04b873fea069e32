"""Which of several pictures people would pick for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import PositiveInt

from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.frozen import CLIP, Device, checkpoint_for, frozen, pictures_embedded, texts_embedded
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of


@register_reward('pick_score', reads=PICTURES)
def pick_score(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(CLIP)],
    processor: str | None = None,
    column: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """Scaled cosine of a picture and the text that asked for it, `exp(logit_scale) cos`; PickScore's lie near 20.

    PickScore (Kirstain et al., 2023, arXiv:2305.01569, section 4) is a CLIP model trained on what people picked; the
    difference of two scores is the logit of the choice.

    Args:
        completions: the responses.
        model: checkpoint of CLIP, such as `yuvalkirstain/PickScore_v1`, or one that `rm` trained.
        processor: checkpoint with the tokenizer and the processor, where that of the model has none.
        column: column of the row with the text; None is the text of the last user turn.
        device: where the model runs; None is the device of this rank.
        batch_size: pictures and texts in one pass.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row has no text.
    """

    def scores(pictures: list[Any], owners: list[Completion]) -> list[float]:
        clip = frozen(model, CLIP, device, processor=processor)
        texts = texts_embedded(clip, [text_asked_for(owner, column) for owner in owners], batch_size)
        cosines = (pictures_embedded(clip, pictures, batch_size) * texts).sum(-1)
        return (clip.model.logit_scale.exp().cpu() * cosines).tolist()

    return mean_by_response(completions, pictures_of, scores, missing)
