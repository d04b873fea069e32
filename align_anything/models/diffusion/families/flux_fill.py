"""FLUX.1 Fill (Black Forest Labs, 2024): FLUX.1 that paints what a mask leaves of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.contents import native_size
from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation
from align_anything.models.diffusion.families.flux import FluxSpec, positions
from align_anything.models.diffusion.packing import pack
from align_anything.models.diffusion.pictures import SOURCE
from align_anything.models.diffusion.prepared import Prompt, Size


class FluxFillSpec(FluxSpec):
    """Predicts the velocity at σ. Channels of the picture, without what is painted, and of its mask come last."""

    pipelines = ('FluxFillPipeline',)
    reads = frozenset({'image'})
    shown = ('the image to fill', 'its mask, white where it is painted')
    unopened = ()

    def prompt_of(self, messages: Conversation, size: Size | None = None) -> Prompt:
        """Returns the prompt. Raises SampleError for another turn, and for a mask that is not as large as the image."""
        prompt = super().prompt_of(messages, size)
        picture, mask = prompt.pictures
        if native_size(picture) != native_size(mask):
            told = ' and '.join(' × '.join(map(str, native_size(own)[::-1])) for own in (mask, picture))
            raise SampleError(f'the mask and the image to fill should be of one size, but are {told} pixels')
        return prompt

    def encode_pictures(self, pipeline: Any, prompt: Prompt) -> dict[str, Tensor]:
        """Returns `source` `(channels + factor², height, width)`: latents of what is left of the picture, and the mask.

        What is painted is grey in the picture. The pipeline samples these latents; here they are the mode.
        """
        picture, mask = prompt.pictures
        painted = (self.fitted(mask.convert('L'), prompt.size)[:1] >= 0).float()
        left = self.fitted(picture, prompt.size) * (1 - painted)
        latents = self.encode_media(pipeline, left[None])[0].cpu()
        return {SOURCE: torch.cat([latents, nn.functional.pixel_unshuffle(painted, self.factor)])}

    def placed(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of samples, each with those of the picture and the mask there."""
        source = conditions[SOURCE].to(sample.dtype)
        return pack(torch.cat([sample, source], 1)), positions(sample)


SPEC = FluxFillSpec
