"""Emu3: pictures are rows of tokens of the one vocabulary, in prompts and in answers, and their size is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import Emu3ForConditionalGeneration, Emu3VQVAE

from align_anything.core.types import CodedMedia, Conversation, MediaKind, Message
from align_anything.models.codes import MARK, KindOfCodes, MediaCodes
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.own_codec import first_of, ids_of, own_codec

ROW_END = '<|extra_200|>'
_initialise = Emu3VQVAE._init_weights


def _initialise_what_is_here(codec: Emu3VQVAE, module: nn.Module) -> None:
    """transformers' own initialisation, except of what ZeRO-3 has loaded and partitioned already: it measures it."""
    if all(parameter.numel() for parameter in module.parameters(recurse=False)):
        _initialise(codec, module)


Emu3VQVAE._init_weights = _initialise_what_is_here


class AccustomedEmu3Model(Emu3ForConditionalGeneration):
    """Emu3 with a language-model head."""


@dataclass(frozen=True)
class Emu3Codes(KindOfCodes):
    """Pictures that begin with their height and width in codes, as in `<|image start|>24*32<|image token|>`."""

    tokenizer: Any = field(default=None, compare=False, repr=False)

    def opening_of(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Returns the ids before the codes of a picture of that grid."""
        height, width = grid
        named = self.tokenizer
        return ids_of(named, f'{named.boi_token}{height}*{width}{named.image_wrapper_token}')


class Emu3Encoder(RunEncoder):
    """Takes off the BOS where it was not asked for: the processor puts one before every text."""

    def _call(self, text: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        outputs = super()._call(text, arguments)
        wanted = arguments.get('add_special_tokens', True)
        return outputs if wanted else {**outputs, 'input_ids': outputs['input_ids'][:, 1:]}


class Emu3Spec(FamilySpec):
    """Codes everywhere: no pixels reach the model."""

    encoder_class = Emu3Encoder

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds that the model reads otherwise than as codes: none."""
        return frozenset()

    def make_codes(self) -> MediaCodes:
        """Returns the codes of pictures, which may have any size. Raises ModelError as `own_codec` and `first_of`."""
        rules, vocabulary = own_codec(self.config), self.config.vocabulary_map
        named = self.tokenizer
        codes = Emu3Codes(
            'image',
            rules.books,
            (first_of([f'<|visual token {code:06d}|>' for code in range(rules.books[0])], vocabulary, 'emu3'),),
            ids_of(named, named.boi_token),
            ids_of(named, named.eof_token + named.eoi_token),
            first_of([ROW_END], vocabulary, 'emu3'),
            tokenizer=named,
        )
        return MediaCodes({'image': codes}, {'image': rules}, prompts=frozenset({'image'}))

    def _marked(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], tuple[CodedMedia, ...]]:
        marked, coded = super()._marked(conversations)
        return [[_pictures_first(message) for message in conversation] for conversation in marked], coded


def _pictures_first(message: Message) -> Message:
    """A turn of the user with its pictures right before its words, as the family's template writes them."""
    if message['role'] == 'assistant':
        return message
    parts = [part['text'] for part in message['content'] if part['type'] == 'text']
    pictures = [text for text in parts if MARK.fullmatch(text)]
    words = [text for text in parts if not MARK.fullmatch(text)]
    others = [part for part in message['content'] if part['type'] != 'text']
    if not pictures:
        return message
    first = {'type': 'text', 'text': ''.join([*pictures, *words[:1]])}
    return {**message, 'content': [first, *({'type': 'text', 'text': text} for text in words[1:]), *others]}


MODEL, SPEC = AccustomedEmu3Model, Emu3Spec
WRITES = ('image',)
