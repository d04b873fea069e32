"""Janus: pictures are read by a tower, and written as codes of a vocabulary of their own, behind that of text."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, JanusForConditionalGeneration, JanusModel

from align_anything.models import structure
from align_anything.models.codes import KindOfCodes, MediaCodes
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.omni import put
from align_anything.models.output_heads import OutputHead
from align_anything.models.own_codec import EveryLogit, ids_of, own_codec
from align_anything.models.rendering import Run


class AccustomedJanusModel(EveryLogit, JanusForConditionalGeneration):
    """Janus over one vocabulary: the ids of text, and behind them, from `vocab_size` on, the codes of pictures."""

    # transformers' own one writes pictures by a loop of its own, which tells no scores and knows no grammar.
    generate = GenerationMixin.generate

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Returns the logits of text and codes side by side, `(rows, length, vocab_size + codes)`.

        A token is one of either, never one among both: who samples keeps them apart.
        """
        return torch.cat([super().logits_of(hidden), self.model.generation_head(hidden)], dim=-1)


class AccustomedJanusBody(JanusModel):
    """Embeds codes among text, by modules that are called on every rank, with an empty selection if need be."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the language model's output. `pixel_values` `(images, 3, side, side)` are those that are read."""
        if inputs_embeds is None:
            inputs_embeds = self.embedded(input_ids)
        if pixel_values is not None:
            seen = self.get_image_features(pixel_values, return_dict=True).pooler_output
            inputs_embeds = put(inputs_embeds, input_ids == self.config.image_token_id, seen.flatten(0, 1))
        return self.language_model(inputs_embeds=inputs_embeds, **inputs)

    def embedded(self, ids: Tensor) -> Tensor:
        """Returns the embeddings of ids of text and codes, `(rows, length, size)`."""
        first = self.config.text_config.vocab_size
        are_codes = ids >= first
        words = self.language_model.get_input_embeddings()(ids.masked_fill(are_codes, 0))
        codes = self.generation_aligner(self.generation_embeddings(ids[are_codes] - first))
        return put(words, are_codes, codes)


class JanusEncoder(RunEncoder):
    """Keeps the processor's own system prompt, where the checkpoint asks for it, before the first words only."""

    def _process(self, run: Run, first: bool) -> tuple[Any, int]:
        default = self.processor.use_default_system_prompt
        self.processor.use_default_system_prompt = default and first
        try:
            return super()._process(run, first)
        finally:
            self.processor.use_default_system_prompt = default


class JanusSpec(FamilySpec):
    """Pixels in prompts, codes in answers; each id is scored by the head that writes it."""

    encoder_class = JanusEncoder

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the language model can compute: the class around it does not say."""
        return structure.layouts(self.config.text_config)

    def make_codes(self) -> MediaCodes:
        """Returns the codes of pictures, all of one size, behind the ids of text. Raises ModelError as `own_codec`."""
        rules, named = own_codec(self.config), self.tokenizer
        side = self.config.vq_config.num_patches
        codes = KindOfCodes(
            'image',
            rules.books,
            (self.config.text_config.vocab_size,),
            ids_of(named, named.boi_token),
            ids_of(named, named.eoi_token),
            size=(side, side),
        )
        return MediaCodes({'image': codes}, {'image': rules}, separate=True)

    def heads(self, model: nn.Module) -> list[OutputHead]:
        """Returns the head of text and that of codes, whose first layers come before its last one."""
        head, first = model.model.generation_head, self.config.text_config.vocab_size
        before = nn.Sequential(head.proj_out, head.activation_fn)
        span = (first, first + self.config.vq_config.num_embeddings)
        return [*super().heads(model), OutputHead(span, head.vision_head, before)]


MODEL, BODY, SPEC = AccustomedJanusModel, AccustomedJanusBody, JanusSpec
WRITES = ('image',)
