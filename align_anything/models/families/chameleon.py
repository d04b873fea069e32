"""Chameleon: pictures are tokens of the one vocabulary, in prompts and in answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from align_anything.core.logging import get_logger
from align_anything.core.types import MediaKind, Piece
from align_anything.models.codes import KindOfCodes, MediaCodes
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.own_codec import EveryLogit, first_of, ids_of, own_codec
from align_anything.models.rendering import Run

logger = get_logger(__name__)

ASKED = '{% elif not (loop.last and add_generation_prompt) %}'
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% elif message['role'] == 'system' %}{{ '\n\n' }}"
    + ASKED
    + '{{ sep_token }}{% endif %}{% endfor %}'
)
"""Checkpoints come without a template. In this one a separator ends what a user says, and the end of text an answer.

The separator behind a prompt is left to the processor of transformers, which puts one there whatever it is told.
"""
WHOLE = TEMPLATE.replace(ASKED, '{% else %}')
"""The same with all separators, as conversations are rendered here."""


class AccustomedChameleonModel(EveryLogit, ChameleonForConditionalGeneration):
    """Chameleon that gives its codes logits too: transformers' class masks them, so that it never writes a picture."""


class ChameleonEncoder(RunEncoder):
    """Takes off the separator that the processor puts behind every text: what it is given may go on with a picture."""

    def _call(self, text: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        outputs = super()._call(text, arguments)
        return {**outputs, 'input_ids': outputs['input_ids'][:, :-1]}


class ChameleonSpec(FamilySpec):
    """Codes everywhere: no pixels reach the model."""

    encoder_class = ChameleonEncoder

    def __init__(self, config: Any, tokenizer: Any, processor: Any = None, **options: Any) -> None:
        """As `FamilySpec`. Checkpoints without a template are saved with one for the processor of transformers."""
        super().__init__(config, tokenizer, processor, **options)
        if self.renderer.template == WHOLE:
            processor.chat_template = TEMPLATE

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds that the model reads otherwise than as codes: none."""
        return frozenset()

    def make_codes(self) -> MediaCodes:
        """Returns the codes of pictures, all of one size. Raises ModelError as `own_codec` and `first_of`."""
        rules, processor = own_codec(self.config), self.processor
        names = [f'IMGIMG{_letters(code)}Z' for code in range(rules.books[0])]
        side = math.isqrt(processor.image_seq_length)
        codes = KindOfCodes(
            'image',
            rules.books,
            (first_of(names, self.config.vocabulary_map, 'chameleon'),),
            ids_of(self.tokenizer, processor.image_start_token),
            ids_of(self.tokenizer, processor.image_end_token),
            size=(side, side),
        )
        if not rules.decodes:
            logger.info('transformers has no decoder for the pictures of Chameleon: those that it writes stay codes.')
        return MediaCodes({'image': codes}, {'image': rules}, prompts=frozenset({'image'}))

    def encode_run(self, run: Run, first: bool = False) -> Piece:
        # Templates of checkpoints may leave the separator behind a prompt to the processor.
        separator = self.tokenizer.sep_token
        ended = run if not first or run.text.endswith(separator) else replace(run, text=run.text + separator)
        return super().encode_run(ended, first)

    def _checkpoint_template(self) -> str | None:
        found = super()._checkpoint_template()
        return WHOLE if found in (None, TEMPLATE) else found


def _letters(code: int) -> str:
    """The digits of a number as the letters that tokens are named with, A for 0."""
    return ''.join(chr(ord('A') + int(digit)) for digit in str(code))


MODEL, SPEC = AccustomedChameleonModel, ChameleonSpec
WRITES = ('image',)
