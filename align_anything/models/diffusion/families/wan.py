"""Wan 2.1 and 2.2 (Wan Team, 2025): a flow over standardised latents under UMT5, in 2.2 with two experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.experts import Experts
from align_anything.models.diffusion.library import require_beside
from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.several import (
    filled,
    kept_apart,
    named,
    present,
    replaced,
    rows_of,
    split,
    strips,
    unstrip,
)
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.statistics import standardised, unstandardised
from align_anything.models.diffusion.videos import VideoSpec

SECOND = 'transformer_2'


class WanSpec(VideoSpec):
    """Predicts the velocity at 1000 σ; the checkpoint's scheduler rounds that down in sampling, which we do not."""

    pipelines = ('WanPipeline',)
    lora_targets = ('to_q', 'to_k', 'to_v', 'to_out.0', 'ffn.net.0.proj', 'ffn.net.2')
    side_multiple = 2
    default_text_length = 512
    one_size = ''

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return self.configs['vae'].get('scale_factor_spatial', 8)

    @property
    def frame_factor(self) -> int:
        """Frames for one latent, after the first."""
        return self.configs['vae'].get('scale_factor_temporal', 4)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.configs['vae']['z_dim']

    @property
    def most_positions(self) -> int:
        """Patches of a side in the tables of the denoiser, which are as long for frames."""
        return self.configs[self.denoiser].get('rope_max_seq_len') or 1024

    @property
    def denoisers(self) -> tuple[str, ...]:
        """One, or two experts: the first for high noise."""
        return (self.denoiser, SECOND) if SECOND in self.configs else (self.denoiser,)

    def check(self) -> None:
        """Raises ModelError for experts without a boundary between them, and as all families do."""
        super().check()
        require_beside('ftfy', self.model_type)
        if SECOND in self.configs and not self.index.get('boundary_ratio'):
            raise ModelError(f'{self.folder}/model_index.json has two experts, and no boundary_ratio between them.')

    def joined(self, parts: Mapping[str, nn.Module]) -> nn.Module:
        """Returns the denoiser, or both experts in one."""
        if len(parts) == 1:
            return super().joined(parts)
        high, low = parts.items()
        return Experts(high, low, self.index['boundary_ratio'] * self.timesteps)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of each."""
        text, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=pipeline.device,
        )
        return rows(text=text)

    def scaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the autoencoder as the denoiser has them."""
        return standardised(latents, self.configs['vae'])

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the denoiser as the autoencoder has them."""
        return unstandardised(latents, self.configs['vae'])

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        return self._predicted(denoiser, sample, level, conditions['text'])

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples, patch = [own.sample for own in given], self.side_multiple
        text = filled([own.conditions['text'] for own in given])
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        there = rows_of(samples, tokens, text.shape[1])
        embed = named(denoiser, 'rope')[0]
        there = there.turning(samples, [[table[0] for table in embed(sample)] for sample in samples])
        with kept_apart(there), replaced(denoiser, 'rope', 'forward', lambda sample: present().tables):
            predicted = self._predicted(
                denoiser,
                strips(samples, patch, there.longest)[:, :, None],
                torch.cat([own.level for own in given]),
                text,
            )[:, :, 0]
        return [unstrip(own, sample, patch) for own, sample in zip(split(predicted, samples), samples, strict=True)]

    def _predicted(self, denoiser: nn.Module, sample: Tensor, level: Tensor, text: Tensor) -> Tensor:
        timestep = level * self.timesteps
        if self.index.get('expand_timesteps'):
            # Of Wan 2.2 with 5B parameters each token has its own, here all the same.
            timestep = timestep[:, None].expand(-1, self.tokens(sample.shape[1:]))
        return denoiser(
            hidden_states=sample,
            timestep=timestep,
            encoder_hidden_states=text.to(sample.dtype),
            return_dict=False,
        )[0].float()


SPEC = WanSpec
