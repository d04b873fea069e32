"""FLUX.1 (Black Forest Labs, 2024): a flow over packed latents, told its guidance where it is distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.packing import even_sigmas, pack, unpack
from align_anything.models.diffusion.pictures import PictureSpec, rows


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
        height, width = sample.shape[-2:]
        told = None
        if self.configs[self.denoiser].get('guidance_embeds'):
            # In float32: it is multiplied by 1000 first.
            told = torch.full((len(sample),), guidance, dtype=torch.float32, device=sample.device)
        text = conditions['text'].to(sample.dtype)
        tokens, places = self.placed(sample, conditions)
        predicted = denoiser(
            hidden_states=tokens,
            timestep=level * self.timesteps / 1000,
            guidance=told,
            pooled_projections=conditions['pooled'].to(sample.dtype),
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(predicted[:, : height * width // 4].float(), height, width)

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
