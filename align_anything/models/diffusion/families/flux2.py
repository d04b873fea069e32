"""FLUX.2 klein (Black Forest Labs, 2025): a flow over normalised 2 × 2 patches under layers of Qwen3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.packing import even_sigmas
from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.turning import turned_in_pairs


class Flux2KleinSpec(PictureSpec):
    """Predicts the velocity at σ of latents `(4 * channels, height / 2, width / 2)`.

    They are standardised by the running statistics of the autoencoder's batch normalisation. Sampling shifts noise
    levels by a rule of its own; training has that of FLUX.1.
    """

    pipelines = ('Flux2KleinPipeline',)
    lora_targets = ('to_q', 'to_k', 'to_v', 'to_out.0', 'to_qkv_mlp_proj', 'attn.to_out')
    default_text_length = 512
    one_size = ''

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
        tokens = self._predicted(denoiser, _tokens(sample), _places(sample), level, conditions['text'])
        return tokens.transpose(1, 2).reshape(sample.shape)

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples = [own.sample for own in given]
        text = filled([own.conditions['text'] for own in given])
        length = text.shape[1]
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        present = rows_of(samples, tokens, length, text=length, turn=turned_in_pairs)
        (embed,) = named(denoiser, 'pos_embed')
        of_text = _positions(1, 1, 1, length)[0].to(text.device)
        tables = [embed(torch.cat([of_text, _places(sample)[0]])) for sample in samples]
        present = present.turning(samples, tables)

        def unturned(places: Tensor) -> tuple[Tensor, Tensor]:
            cosine = tables[0][0].new_ones(len(places), tables[0][0].shape[-1])
            return cosine, torch.zeros_like(cosine)

        with kept_apart(present), replaced(denoiser, 'pos_embed', 'forward', unturned):
            predicted = self._predicted(
                denoiser,
                filled([_tokens(sample) for sample in samples], present.longest),
                _positions(1, 1, 1, present.longest).to(text.device),
                torch.cat([own.level for own in given]),
                text,
            )
        return [
            own[:, :count].transpose(1, 2).reshape(sample.shape)
            for own, count, sample in zip(split(predicted, samples), tokens, samples, strict=True)
        ]

    def _predicted(self, denoiser: nn.Module, tokens: Tensor, places: Tensor, level: Tensor, text: Tensor) -> Tensor:
        text = text.to(tokens.dtype)
        return denoiser(
            hidden_states=tokens,
            timestep=level * self.timesteps / 1000,
            encoder_hidden_states=text,
            txt_ids=_positions(len(tokens), 1, 1, text.shape[1]).to(text.device),
            img_ids=places,
            return_dict=False,
        )[0].float()

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


def _tokens(sample: Tensor) -> Tensor:
    return sample.flatten(2).transpose(1, 2)


def _places(sample: Tensor) -> Tensor:
    return _positions(len(sample), *sample.shape[-2:], 1).to(sample.device)


def _positions(batch: int, height: int, width: int, length: int) -> Tensor:
    """Returns 0, row, column and place in the text of each token, `(batch, tokens, 4)`."""
    places = torch.cartesian_prod(*(torch.arange(count) for count in (1, height, width, length)))
    return places.expand(batch, -1, -1)


SPEC = Flux2KleinSpec
