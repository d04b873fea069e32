"""FLUX.2 klein (Black Forest Labs, 2025): a flow over normalised 2 × 2 patches under layers of Qwen3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.packing import even_sigmas
from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.prepared import Size


class Flux2KleinSpec(PictureSpec):
    """Predicts the velocity at σ of latents `(4 * channels, height / 2, width / 2)`.

    They are standardised by the running statistics of the autoencoder's batch normalisation. Sampling shifts noise
    levels by a rule of its own; training has that of FLUX.1.
    """

    pipelines = ('Flux2KleinPipeline',)
    lora_targets = ('to_q', 'to_k', 'to_v', 'to_out.0', 'to_qkv_mlp_proj', 'attn.to_out')
    default_text_length = 512

    @property
    def factor(self) -> int:
        """Pixels of a side for one patch of latents."""
        return 2 * super().factor

    @property
    def channels(self) -> int:
        """Channels of a patch of latents."""
        return 4 * super().channels

    def default_size(self) -> Size:
        """Returns the size of the settings, else 128 latents a side, `(height, width)`."""
        side = 64 * self.factor
        return self.sizing.resolution or (side, side)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of each."""
        text, _ = pipeline.encode_prompt(list(prompts), pipeline.device, max_sequence_length=self.text_length)
        return rows(text=text)

    @torch.no_grad()
    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution in patches, standardised."""
        vae = pipeline.vae
        latents = vae.encode(fitted.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, deviation = _statistics(vae)
        return ((pipeline._patchify_latents(latents) - mean) / deviation).float()

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns RGB PIL images."""
        vae = pipeline.vae
        mean, deviation = _statistics(vae)
        patches = latents.to(vae.device, vae.dtype) * deviation + mean
        pixels = vae.decode(pipeline._unpatchify_latents(patches), return_dict=False)[0]
        return pipeline.image_processor.postprocess(pixels, output_type='pil')

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        text = conditions['text'].to(sample.dtype)
        device = sample.device
        tokens = denoiser(
            hidden_states=sample.flatten(2).transpose(1, 2),
            timestep=level * self.timesteps / 1000,
            encoder_hidden_states=text,
            txt_ids=_positions(len(sample), 1, 1, text.shape[1]).to(device),
            img_ids=_positions(len(sample), *sample.shape[-2:], 1).to(device),
            return_dict=False,
        )[0]
        return tokens.float().transpose(1, 2).reshape(sample.shape)

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns even noise levels, unless the scheduler makes its own."""
        return None if self.configs['scheduler'].get('use_flow_sigmas') else even_sigmas(steps)

    def mu(self, shape: Sequence[int], steps: int | None = None) -> float | None:
        """Returns μ, in sampling by a rule that was fitted to the number of tokens and of steps."""
        if steps is None:
            return super().mu(shape)
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return compute_empirical_mu(self.tokens(shape), steps)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    mean, variance = vae.bn.running_mean, vae.bn.running_var
    return mean.view(1, -1, 1, 1), (variance + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)


def _positions(batch: int, height: int, width: int, length: int) -> Tensor:
    """Returns 0, row, column and place in the text of each token, `(batch, tokens, 4)`."""
    places = torch.cartesian_prod(*(torch.arange(count) for count in (1, height, width, length)))
    return places.expand(batch, -1, -1)


SPEC = Flux2KleinSpec
