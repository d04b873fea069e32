"""How people would rate a picture for a text, by the Human Preference Score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.frozen import CLIP, Device, checkpoint_for, frozen, pictures_embedded, texts_embedded
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of
from align_anything.rewards.published import clip_weights, weights_file


@register_reward('hps', reads=PICTURES)
def hps(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(CLIP)],
    weights: Annotated[str, weights_file(clip_weights)] | None = None,
    column: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """Cosine of a picture and the text that asked for it, by HPS v2 or v2.1; theirs lie between 0.2 and 0.35.

    Wu et al., 2023, arXiv:2306.09341. As in their code a picture is resized until its longer side fits and padded with
    black, where `clip_score` crops it.

    Args:
        completions: the responses.
        model: checkpoint of the CLIP model that the weights are of, ViT-H/14 of LAION:
            `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. With `weights`, its configuration and processor are read alone.
        weights: file of the published weights, such as `HPS_v2.1_compressed.pt`, in the names of open_clip; None are
            those of `model`.
        column: column of the row with the text; None is the text of the last user turn.
        device: where the model runs; None is the device of this rank.
        batch_size: pictures and texts in one pass.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row has no text.
        ModelError: the weights are not those of such a model.
    """

    def cosines(pictures: list[Any], owners: list[Completion]) -> list[float]:
        clip = frozen(model, CLIP, device, weights=weights)
        texts = texts_embedded(clip, [text_asked_for(owner, column) for owner in owners], batch_size)
        processor = clip.processor.image_processor
        pixels = partial(
            padded,
            side=clip.model.config.vision_config.image_size,
            mean=processor.image_mean,
            std=processor.image_std,
        )
        return (pictures_embedded(clip, pictures, batch_size, pixels) * texts).sum(-1).tolist()

    return mean_by_response(completions, pictures_of, cosines, missing)


def padded(picture: Any, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns a PIL image of any shape in the middle of a black square, normalised, `(3, side, side)`."""
    from torchvision.transforms.v2 import functional

    pixels = functional.pil_to_tensor(picture.convert('RGB')).float() / 255
    scale = side / max(pixels.shape[1:])
    size = [max(1, round(length * scale)) for length in pixels.shape[1:]]
    if scale != 1:
        pixels = functional.resize(pixels, size, functional.InterpolationMode.BICUBIC, antialias=True)
    top, left = ((side - length) // 2 for length in size)
    square = torch.zeros(3, side, side)
    square[:, top : top + size[0], left : left + size[1]] = pixels
    return functional.normalize(square, list(mean), list(std))
