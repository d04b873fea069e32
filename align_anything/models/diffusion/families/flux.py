"""FLUX.1 (Black Forest Labs, 2024): a flow over packed latents, told its guidance where it is distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.packing import even_sigmas, pack, unpack
from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.turning import turned_in_pairs


class FluxSpec(PictureSpec):
    """Predicts the velocity at σ. The shift of noise levels grows with the picture."""

    pipelines = ('FluxPipeline',)
    lora_targets = (
        *(f'attn.{name}' for name in 'to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out'.split()),
        *(f'{block}.net.{layer}' for block in ('ff', 'ff_context') for layer in ('0.proj', '2')),
    )
    side_multiple = 2
    unopened = ('image_encoder', 'feature_extractor')
    default_text_length = 512
    one_size = ''

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of T5 and `pooled` `(size,)` of CLIP of each."""
        text, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, device=pipeline.device, max_sequence_length=self.text_length
        )
        return rows(text=text, pooled=pooled)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        tokens, places = self.placed(sample, conditions)
        predicted = self._predicted(denoiser, tokens, places, level, conditions['text'], conditions['pooled'], guidance)
        return unpack(predicted[:, : self.tokens(sample.shape[1:])].float(), *sample.shape[-2:])

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples = [own.sample for own in given]
        text = filled([own.conditions['text'] for own in given])
        placed = [self.placed(own.sample, own.conditions) for own in given]
        length = text.shape[1]
        present = rows_of(samples, [len(places) for _, places in placed], length, text=length, turn=turned_in_pairs)
        (embed,) = named(denoiser, 'pos_embed')
        tables = [embed(torch.cat([places.new_zeros(length, 3), places])) for _, places in placed]
        present = present.turning(samples, tables)
        with kept_apart(present), replaced(denoiser, 'pos_embed', 'forward', lambda places: None):
            predicted = self._predicted(
                denoiser,
                filled([tokens for tokens, _ in placed], present.longest),
                placed[0][1],
                torch.cat([own.level for own in given]),
                text,
                torch.cat([own.conditions['pooled'] for own in given]),
                guidance,
            )
        return [
            unpack(own[:, : self.tokens(sample.shape[1:])].float(), *sample.shape[-2:])
            for own, sample in zip(split(predicted, samples), samples, strict=True)
        ]

    def _predicted(
        self,
        denoiser: nn.Module,
        tokens: Tensor,
        places: Tensor,
        level: Tensor,
        text: Tensor,
        pooled: Tensor,
        guidance: float,
    ) -> Tensor:
        told = None
        if self.configs[self.denoiser].get('guidance_embeds'):
            # In float32: it is multiplied by 1000 first.
            told = torch.full((len(tokens),), guidance, dtype=torch.float32, device=tokens.device)
        text = text.to(tokens.dtype)
        return denoiser(
            hidden_states=tokens,
            timestep=level * self.timesteps / 1000,
            guidance=told,
            pooled_projections=pooled.to(tokens.dtype),
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]

    def placed(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the tokens that the denoiser sees of samples, `(batch, tokens, …)`, and their positions.

        Those of the samples stand first.
        """
        return pack(sample), positions(sample)

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns even noise levels, unless the scheduler makes its own."""
        return None if self.configs['scheduler'].get('use_flow_sigmas') else even_sigmas(steps)


def positions(latents: Tensor, number: int = 0) -> Tensor:
    """Returns the number of a picture, and the row and the column of each patch of its latents, `(patches, 3)`."""
    row, column = torch.meshgrid(*(torch.arange(side // 2) for side in latents.shape[-2:]), indexing='ij')
    return torch.stack([torch.full_like(row, number), row, column], -1).view(-1, 3).to(latents)


SPEC = FluxSpec
