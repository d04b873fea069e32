"""CLIP: scores how well a picture fits a text, and writes nothing. PickScore is one (arXiv:2305.01569)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel
from transformers.modeling_outputs import BaseModelOutput

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, MediaKind, Piece, decoded_medium
from align_anything.models.body import BodyWithin
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import TrainOn

PLACEHOLDER = '<image>'
"""What the template of the family, which nothing is rendered by, has for a picture."""


class AccustomedCLIPModel(BodyWithin, CLIPModel):
    """CLIP over rows of a text and, behind it, one token that stands for a picture, whose id is `vocab_size`."""

    def body(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutput:
        """Returns the embeddings of text and picture of each row, at length 1 and multiplied, at all of its positions.

        Zeros where there is no picture. Text is read in one direction, up to its last token before the picture, so no
        mask is needed: nothing behind that token is read, and nothing before it is padding.

        Args:
            input_ids: `(rows, length)`.
            attention_mask, position_ids, use_cache: as other bodies have them; not read.
            pixel_values: the pictures, in the order of the rows that have one, `(pictures, 3, side, side)`.
        """
        is_picture = input_ids == self.config.text_config.vocab_size
        rows, last = torch.arange(len(input_ids), device=input_ids.device), is_picture.int().argmax(1) - 1
        text = input_ids.masked_fill(is_picture, 0)[:, : self.config.text_config.max_position_embeddings]
        states = self.text_model(input_ids=text).last_hidden_state[rows, last.clamp(min=0)]
        words = normalize(self.text_projection(states).float(), dim=-1)
        seen = torch.zeros_like(words)
        if pixel_values is not None:
            looks = self.get_image_features(pixel_values, return_dict=True).pooler_output
            seen = seen.index_put((rows[is_picture.any(1)],), normalize(looks.float(), dim=-1))
        return BaseModelOutput(last_hidden_state=(words * seen)[:, None].expand(-1, input_ids.shape[1], -1))


class ScaledCosine(nn.Module):
    """The score of CLIP: `exp(logit_scale) cos`, of embeddings that the body has multiplied. It has no weights."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self._model = [model]  # in a list, for it is no part of this module

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the scores of `hidden` `(..., size)` as `(...)` float32."""
        return self._model[0].logit_scale.float().exp() * hidden.float().sum(-1)


class CLIPSpec(FamilySpec):
    """A prompt is its text, as CLIP's tokenizer writes it; an answer is one picture."""

    brings_processor = True
    component_prefixes: Mapping[str, Sequence[str]] = {
        'vision_tower': ('vision_model',),
        'mm_proj': ('visual_projection',),
        'language_model': ('text_model', 'text_projection', 'logit_scale'),
    }

    def __init__(self, config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, **more: Any) -> None:
        """As `FamilySpec`; the token of the picture is not counted in `max_length`."""
        super().__init__(config, tokenizer, processor, max_length=max_length, **more)
        self.max_length = min(max_length, self._positions) + 1

    @property
    def _positions(self) -> int:
        return self.config.text_config.max_position_embeddings

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """The text of a row is read by itself."""
        return ('padded',)

    def placeholder(self, kind: MediaKind) -> str | None:
        return PLACEHOLDER

    def placeholder_ids(self) -> frozenset[int]:
        return frozenset({self.config.text_config.vocab_size})

    def external_parameters(self, model: nn.Module) -> Sequence[tuple[nn.Module, nn.Parameter]]:
        """Returns the scale, which the head reads of the model around it."""
        return [(head, model.logit_scale) for head in model.modules() if type(head) is ScaledCosine]

    def _encode(
        self, conversations: Sequence[Conversation], train_on: TrainOn, start: int, judged: bool = False
    ) -> Example:
        if not judged:
            raise SampleError(f"models of type '{self.model_type}' score answers and write none")
        prompt = self._words(conversations[0][:start])
        return Example(prompt, [self._picture(conversation[start:]) for conversation in conversations])

    def _words(self, turns: Conversation) -> Piece:
        """The text of a prompt, cut to what the model reads; its last token is the one that ends texts."""
        parts = [part for turn in turns for part in turn['content']]
        if [turn['role'] for turn in turns] != ['user'] or any(part['type'] != 'text' for part in parts):
            raise SampleError(
                f"models of type '{self.model_type}' read one turn of the user, and text alone in it: leave out the "
                'system prompt, earlier turns and media of the prompt, or judge with another model'
            )
        text = ''.join(part['text'] for part in parts)
        ids = self.tokenizer(text, truncation=True, max_length=min(self.max_length - 1, self._positions))['input_ids']
        return Piece(torch.tensor(ids), torch.zeros(len(ids)))

    def _picture(self, turns: Conversation) -> Piece:
        """The token of the one picture of an answer."""
        parts = [part for turn in turns for part in turn['content'] if part['type'] != 'text' or part['text'].strip()]
        pictures = [decoded_medium(part) for part in parts if part['type'] == 'image']
        if len(turns) != 1 or len(parts) != 1 or not pictures or pictures[0] is None:
            raise SampleError(f"models of type '{self.model_type}' judge answers that are one image and nothing else")
        return self._seen(pictures[0])

    def _seen(self, picture: Any) -> Piece:
        try:
            pixels = self.processor.image_processor(images=[picture], return_tensors='pt')['pixel_values']
        except Exception as error:  # Processors raise anything from ValueError to StopIteration for a bad medium.
            raise SampleError(f'{type(self.processor).__name__} refuses this image: {error!r}') from error
        ids = torch.tensor(sorted(self.media_token_ids))
        return Piece(ids, torch.ones(1), {'pixel_values': pixels}, {'image': 1})

    def _make_dummy(self, kind: MediaKind) -> Piece:
        piece = self._seen(self.encoder.smallest(kind, None))
        piece.weights = torch.zeros(1)
        return piece


MODEL, SPEC, HEAD = AccustomedCLIPModel, CLIPSpec, ScaledCosine
WRITES_TEXT = False
