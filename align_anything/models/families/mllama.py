"""Mllama (Llama 3.2 Vision): one token an image; the text looks at images through cross-attention."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import MllamaForConditionalGeneration, MllamaModel

from align_anything.core.errors import SampleError
from align_anything.core.types import Piece
from align_anything.models.encoding import RunEncoder
from align_anything.models.families.llava import COMPONENTS
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run


class AccustomedMllamaModel(MllamaForConditionalGeneration):
    """Mllama with a language-model head."""


class AccustomedMllamaBody(MllamaModel):
    """Takes images as one list, and finds from the tokens of a row which image each of them sees."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        aspect_ratio_mask: Tensor | None = None,
        aspect_ratio_ids: Tensor | None = None,
        late_images: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the text model's output; with images in rows it is transformers' own forward pass.

        Args:
            pixel_values: `(images, tiles, 3, side, side)`; `aspect_ratio_mask` `(images, tiles)` tells real tiles
                from padding, `aspect_ratio_ids` is `(images,)`.
            late_images: whether an image stands behind the first prompt, `(images,)`. transformers shows the
                images of a row to the tokens in front of all of them; those of a prompt keep to that, but an answer
                must not see an image that comes after it.
        """
        if pixel_values is None or late_images is None:
            return super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                aspect_ratio_mask=aspect_ratio_mask,
                aspect_ratio_ids=aspect_ratio_ids,
                **inputs,
            )
        seen = self.vision_model(
            pixel_values=pixel_values[:, None],
            aspect_ratio_ids=aspect_ratio_ids[:, None],
            aspect_ratio_mask=aspect_ratio_mask[:, None],
        ).last_hidden_state
        states = self.multi_modal_projector(seen).flatten(1, 3)
        is_image = input_ids == self.config.image_token_index
        rows, positions = is_image.nonzero(as_tuple=True)
        slots = is_image.cumsum(1)[rows, positions] - 1
        # Empty slots hold zeros, which add nothing to what looks at them; the last one stays empty.
        number = int(is_image.sum(1).max()) + 1
        padded = states.new_zeros((len(input_ids), number, *states.shape[1:])).index_put((rows, slots), states)
        tiles = aspect_ratio_mask.bool()
        visible = _visible(is_image, rows, positions, slots, tiles, number)
        text = visible.any(-1)
        early = is_image.new_zeros((len(input_ids), number)).index_put((rows, slots), ~late_images)
        early[:, -1] = ~early.any(1)
        early = early.repeat_interleave(tiles.shape[1], dim=1)[:, None]
        allowed = torch.where(text[..., None], visible, early)[:, None]
        allowed = allowed.repeat_interleave(self.vision_model.num_patches, dim=-1)
        mask = torch.zeros(allowed.shape, dtype=padded.dtype, device=padded.device)
        return self.language_model(
            input_ids=input_ids,
            cross_attention_states=padded.flatten(1, 2),
            cross_attention_mask=mask.masked_fill(~allowed, torch.finfo(padded.dtype).min),
            full_text_row_masked_out_mask=text[:, None, :, None].to(padded.dtype),
            **{name: value for name, value in inputs.items() if not name.startswith('cross_attention')},
        )


def _visible(is_image: Tensor, rows: Tensor, positions: Tensor, slots: Tensor, tiles: Tensor, number: int) -> Tensor:
    """Which tile each token sees, `(rows, length, number * tiles)`.

    A token sees the last image before it, and those that touch it on the left.
    """
    starts = is_image.clone()
    starts[:, 1:] &= ~is_image[:, :-1]
    group = starts.cumsum(1)
    length = torch.arange(is_image.shape[1], device=is_image.device)
    sees = (length >= positions[:, None]) & (group[rows] == group[rows, positions][:, None])
    visible = is_image.new_zeros((len(is_image), number, len(length), tiles.shape[1]))
    visible = visible.index_put((rows, slots), sees[..., None] & tiles[:, None])
    return visible.transpose(1, 2).flatten(2)


class MllamaEncoder(RunEncoder):
    """Keeps the processor from putting a BOS in front of every run."""

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. Raises SampleError when the processor refuses an image."""
        if first or not run.media:
            piece = super().piece(run, first)
            if piece.media:
                piece.media['late_images'] = torch.zeros(len(run.media), dtype=torch.bool)
            return piece
        ids = torch.tensor(self._text_ids(run.text, first), dtype=torch.long)
        is_media = torch.isin(ids, torch.tensor(sorted(self.media_token_ids)))
        images = [item for _, item in run.media]
        try:
            outputs = self.processor.image_processor([images], return_tensors='pt')
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise SampleError(f'the image processor refuses an image of this turn: {error!r}') from error
        weights = torch.where(is_media, 0.0, run.weight)
        media = {**self.tidied(outputs), 'late_images': torch.ones(len(images), dtype=torch.bool)}
        return Piece(ids, weights, media, {'image': len(images)})

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs with images in one list; what each token sees is found in the model."""
        if 'pixel_values' not in outputs:
            return outputs
        names = ('pixel_values', 'aspect_ratio_ids', 'aspect_ratio_mask')
        unused = ('cross_attention_mask', 'num_tiles', *names)
        kept = {name: value for name, value in outputs.items() if name not in unused}
        return {**kept, **{name: outputs[name][0] for name in names}}


class MllamaSpec(FamilySpec):
    """Padded rows only: cross-attention knows no segments."""

    encoder_class = MllamaEncoder
    component_prefixes = {**COMPONENTS, 'vision_tower': ('model.vision_model',)}
    further_embedding_rows = 8

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()`: images by row, and which of their tiles each token sees."""
        inputs = super().generation_inputs(prompts)
        if inputs.pop('late_images', None) is None:
            return inputs
        for name in ('pixel_values', 'aspect_ratio_ids', 'aspect_ratio_mask'):
            inputs[name] = inputs[name].unflatten(0, (len(prompts), -1))
        is_image = inputs['input_ids'] == self.config.image_token_index
        rows, positions = is_image.nonzero(as_tuple=True)
        slots = is_image.cumsum(1)[rows, positions] - 1
        tiles = inputs['aspect_ratio_mask']
        visible = _visible(is_image, rows, positions, slots, tiles.flatten(0, 1).bool(), tiles.shape[1])
        inputs['cross_attention_mask'] = visible.unflatten(2, tiles.shape[1:]).long()
        return inputs

    def generation_key(self, prompt: Piece) -> Hashable:
        """Returns the number of images: tokens in front of an image see what stands for missing ones otherwise."""
        return prompt.media_counts.get('image', 0)

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the model class can compute."""
        return ('padded',)


MODEL, BODY, SPEC = AccustomedMllamaModel, AccustomedMllamaBody, MllamaSpec
