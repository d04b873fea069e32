"""PaliGemma: the prompt is read in both directions, the answer from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaModel

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Piece
from align_anything.models.encoding import RunEncoder
from align_anything.models.families.llava import COMPONENTS
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run, TrainOn

PREFIX = 'prefix_tokens'


class AccustomedPaliGemmaModel(PaliGemmaForConditionalGeneration):
    """PaliGemma with a language-model head."""


class AccustomedPaliGemmaBody(PaliGemmaModel):
    """Takes the tokens of the prompt by name: padding and neighbours then count as what is read causally."""

    def forward(self, *args: Any, prefix_tokens: Tensor | None = None, **inputs: Any) -> Any:
        """Returns the text model's output; `prefix_tokens` `(rows, length)` is 1 where the prompt is."""
        if prefix_tokens is not None:
            inputs['token_type_ids'] = 1 - prefix_tokens
        return super().forward(*args, **inputs)


class PaliGemmaEncoder(RunEncoder):
    """Marks the prompt, and writes one without images as the processor writes one with them."""

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. Raises SampleError as the base class does."""
        if first and not run.media:
            # The processor refuses texts without an image.
            ids = self.tokenizer(f'{self.tokenizer.bos_token}{run.text}\n', add_special_tokens=False)['input_ids']
            piece = Piece(torch.tensor(ids), torch.full((len(ids),), run.weight))
        else:
            piece = super().piece(run, first)
        piece.token_tensors = {PREFIX: torch.full_like(piece.ids, int(first))}
        return piece


class PaliGemmaSpec(FamilySpec):
    """One prompt and one answer: earlier turns belong to the prompt. Padded rows only."""

    encoder_class = PaliGemmaEncoder
    component_prefixes = COMPONENTS
    chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' and loop.last %}"
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% else %}"
        "{% if not loop.first %}{{ '\\n' }}{% endif %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        '{% endif %}{% endfor %}'
    )

    def encode(self, conversation: Conversation, train_on: TrainOn = 'all_assistant') -> Example:
        """Encodes a conversation as the base class does.

        Raises SampleError also for `train_on: all`: the tokens of the prompt see each other.
        """
        if train_on == 'all':
            raise SampleError(
                'PaliGemma reads its prompt in both directions, so the prompt cannot be trained on. '
                'Set data_cfgs.train_on: last.'
            )
        return super().encode(conversation, train_on)

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        """Positions of one whole sequence, `(1, length)`; PaliGemma counts from one."""
        return torch.arange(1, ids.numel() + 1)[None]

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()`, which calls the prompt's tokens type 0."""
        inputs = super().generation_inputs(prompts)
        inputs['token_type_ids'] = 1 - inputs.pop(PREFIX)
        return inputs

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the model class can compute."""
        return ('padded',)


MODEL, BODY, SPEC = AccustomedPaliGemmaModel, AccustomedPaliGemmaBody, PaliGemmaSpec
