"""ModelScope's text to video (Wang et al., 2023): a UNet over frames, each of which is encoded by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.spec import CONVOLUTIONS
from align_anything.models.diffusion.videos import VideoSpec


class TextToVideoSDSpec(VideoSpec):
    """Predicts ε at integer timesteps."""

    pipelines = ('TextToVideoSDPipeline',)
    denoiser = 'unet'
    one_size = CONVOLUTIONS
    no_checkpointing = 'diffusers does not do it for a UNet3DConditionModel.'
    frames, fps = 16, 8.0

    @property
    def frame_factor(self) -> int:
        """Frames for one latent: each has its own."""
        return 1

    def default_size(self) -> Size:
        """Returns the size of the settings, else that of the checkpoint, `(frames, height, width)`."""
        side = self.configs[self.denoiser].get('sample_size') or 32
        sides = (side, side) if isinstance(side, int) else tuple(side)
        own = sides[0] * self.factor, sides[1] * self.factor
        return (self.sizing.num_frames or self.frames, *(self.sizing.resolution or own))

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(77, size)` of each."""
        text, _ = pipeline.encode_prompt(list(prompts), pipeline.device, 1, False)
        return rows(text=text)

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution of each frame, scaled."""
        frames = fitted.transpose(1, 2)
        latents = super().encode_media(pipeline, frames.flatten(0, 1))
        return latents.unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns `Video`s."""
        vae, frames = pipeline.vae, latents.transpose(1, 2)
        pixels = vae.decode(self.unscaled(frames.flatten(0, 1).to(vae.device, vae.dtype)), return_dict=False)[0]
        return self.as_videos(pixels.unflatten(0, frames.shape[:2]).transpose(1, 2))

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns ε."""
        text = conditions['text'].to(sample.dtype)
        return denoiser(sample, level, encoder_hidden_states=text, return_dict=False)[0].float()


SPEC = TextToVideoSDSpec
