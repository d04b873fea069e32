"""Conversations with `from` and `value`, and the datasets that use them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.registry import nearest
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.columns import turns as turns_of
from align_anything.datasets.formatters.mapped import MappedFormatter
from align_anything.datasets.formatters.turns import Sample
from align_anything.datasets.turn_keys import beside

ROLES = MappingProxyType(
    {
        'human': 'user',
        'user': 'user',
        'gpt': 'assistant',
        'chatgpt': 'assistant',
        'assistant': 'assistant',
        'model': 'assistant',
        'system': 'system',
        'developer': 'developer',
        'tool': 'tool',
        'observation': 'tool',
        'function_call': 'assistant',
    }
)


@register_template('ShareGPT')
class ShareGPT(MappedFormatter):
    """A list of turns with a speaker and a text, in which `<image>` stands where an image belongs.

    Attributes:
        conversations: column with the list of turns.
        role_key: key of a turn that names the speaker.
        content_key: key of a turn that holds the text.
        roles: further names of speakers, such as `{narrator: system}`, over the usual ones.
    """

    conversations: str | None = None
    role_key: str = 'from'
    content_key: str = 'value'
    roles: dict[str, str] = {}

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        name = self.require(raw_sample, 'conversations', ('conversations', 'conversation'))
        turns = [self._turn(index, turn) for index, turn in enumerate(turns_of(raw_sample, name))]
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        return [*self.opening_of(raw_sample, has_system_turn), *turns], self.beside(raw_sample)

    def _turn(self, index: int, turn: Any) -> dict[str, Any]:
        if not isinstance(turn, Mapping):
            raise SampleError(f'turn {index} should be a record but is {type(turn).__name__}.')
        known = {**ROLES, **self.roles}
        speaker = text(turn, self.role_key)
        if speaker not in known:
            raise SampleError(
                f"turn {index} is spoken by '{speaker}', which is no known role.{nearest(speaker, list(known))} "
                f'Known: {", ".join(known)}; others are mapped with the template option roles.'
            )
        said, rest = text(turn, self.content_key), beside(f'turn {index}', turn, self.role_key, self.content_key)
        if speaker == 'function_call' and speaker not in self.roles:
            return {**rest, 'role': 'assistant', 'content': None, 'tool_calls': said}
        return {**rest, 'role': known[speaker], 'content': said}


@register_template('ShareGPT-4o')
class ShareGPT4o(ShareGPT):
    """Columns `conversations`, `image` (a path relative to `image_folder`)."""


@register_template('LLaVA_Pretrain')
class LLaVAPretrain(ShareGPT):
    """Columns `conversations`, `image` (a path relative to `image_folder`, else to the variable `COCO_DATA_DIR`)."""

    _folder_variables = MappingProxyType({'image': 'COCO_DATA_DIR'})
