"""Stable Diffusion XL (Podell et al., 2023): a UNet under two CLIP encoders, told the size of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.conditioned import token_ids
from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.spec import CONVOLUTIONS


class StableDiffusionXLSpec(PictureSpec):
    """Predicts ε or v at integer timesteps; no prompt is zeros, where the pipeline has it so.

    A picture is said to be of the size that it was brought to, uncropped, as in sampling.
    """

    pipelines = ('StableDiffusionXLPipeline',)
    denoiser = 'unet'
    one_size = CONVOLUTIONS
    trainable_text = ('text_encoder', 'text_encoder_2')
    unopened = ('image_encoder', 'feature_extractor')

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(77, size)` and `pooled` `(size,)` of each.

        Where the encoders are trained along, it is the ids `(77,)` of each of them, and whether the prompt is `empty`.
        """
        if self.trains_text:
            empty = torch.tensor([not prompt for prompt in prompts])
            return rows(**token_ids(pipeline, self.trainable_text, prompts), empty=empty)
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline.device, do_classifier_free_guidance=False
        )
        text, pooled = self._emptied(text, pooled, torch.tensor([not prompt for prompt in prompts]))
        return rows(text=text, pooled=pooled)

    def _emptied(self, text: Tensor, pooled: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        if not self.index.get('force_zeros_for_empty_prompt', True):
            return text, pooled
        empty = empty.to(text.device)
        return text.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)

    def _encoded(self, encoders: Any, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns `text` and `pooled` of token ids, as the pipeline makes them."""
        first, second = (
            getattr(encoders, name)(conditions[name], output_hidden_states=True) for name in self.trainable_text
        )
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return self._emptied(text, second[0], conditions['empty'])

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns what the UNet predicts."""
        height, width = (side * self.factor for side in sample.shape[-2:])
        sizes = sample.new_tensor([[height, width, 0, 0, height, width]]).expand(len(sample), -1)
        text, pooled = (
            self._encoded(denoiser, conditions) if self.trains_text else (conditions['text'], conditions['pooled'])
        )
        return denoiser(
            sample,
            level,
            encoder_hidden_states=text.to(sample.dtype),
            added_cond_kwargs={'text_embeds': pooled.to(sample.dtype), 'time_ids': sizes},
            return_dict=False,
        )[0].float()

    def scaled(self, latents: Tensor) -> Tensor:
        """Returns latents with the mean and deviation taken out that some checkpoints state."""
        mean, deviation = self._statistics(latents)
        return super().scaled((latents - mean) / deviation)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the denoiser as the autoencoder has them."""
        mean, deviation = self._statistics(latents)
        return super().unscaled(latents) * deviation + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.configs['vae']
        both = config.get('latents_mean') or [0.0], config.get('latents_std') or [1.0]
        mean, deviation = (like.new_tensor(values).view(1, -1, 1, 1) for values in both)
        return mean, deviation


SPEC = StableDiffusionXLSpec
