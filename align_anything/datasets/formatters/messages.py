"""Chat rows as Hugging Face datasets hold them."""

from __future__ import annotations

from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, items
from align_anything.datasets.formatters.mapped import MappedFormatter
from align_anything.datasets.formatters.turns import Sample

NOT_TRAINED = ('tool_calls', 'function_call', 'tool_call_id', 'reasoning_content', 'thinking')


@register_template('Messages')
class Messages(MappedFormatter):
    """A list of `{'role', 'content'}`, content being text or parts; images in the parts or in their own column.

    Attributes:
        messages: column with the list of messages.
    """

    messages: str | None = None

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        name = self.require(raw_sample, 'messages', ('messages', 'conversation', 'conversations'))
        turns = [message(index, turn) for index, turn in enumerate(items(raw_sample, name))]
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        return [*self.opening_of(raw_sample, has_system_turn), *turns], self.media(raw_sample)


def message(index: int, turn: Any) -> dict[str, Any]:
    """Returns turn number `index` as a message. Raises `SampleError` when it is none, or holds what would be lost."""
    if not isinstance(turn, dict) or 'role' not in turn or 'content' not in turn:
        keys = sorted(turn) if isinstance(turn, dict) else type(turn).__name__
        raise SampleError(
            f"turn {index} is no {{'role', 'content'}} message but {keys}. "
            "Rows with 'from' and 'value' are for the template ShareGPT."
        )
    lost = [key for key in NOT_TRAINED if turn.get(key)]
    if lost:
        raise SampleError(f'turn {index} has {", ".join(lost)}, which cannot be trained and would be lost.')
    if turn['content'] is None:
        raise SampleError(f'turn {index} ({turn["role"]}) has null content.')
    return {'role': turn['role'], 'content': turn['content']}
