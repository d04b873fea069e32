"""Chat rows as Hugging Face datasets hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.conversation import speaks
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, as_text, from_json, records
from align_anything.datasets.formatters.columns import turns as turns_of
from align_anything.datasets.formatters.mapped import MappedFormatter
from align_anything.datasets.formatters.turns import Sample, Turns, acts, outcomes_of
from align_anything.datasets.turn_keys import filled, refuse_unheeded


@register_template('Messages')
class Messages(MappedFormatter):
    """A list of `{'role', 'content'}`, content being text or parts; images in the parts or in their own column.

    Answers may have `tool_calls` and `reasoning_content`; the role `tool` tells what a call returned.

    Attributes:
        messages: column with the list of messages.
    """

    messages: str | None = None

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        name = self.require(raw_sample, 'messages', ('messages', 'conversation', 'conversations'))
        turns = [message(index, turn) for index, turn in enumerate(turns_of(raw_sample, name))]
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        meta = {**self.beside(raw_sample), **(outcomes_of(raw_sample) if any(map(acts, turns)) else {})}
        return [*self.opening_of(raw_sample, has_system_turn), *turns], meta


def message(index: int, turn: Any) -> dict[str, Any]:
    """Returns turn number `index` as a message, with all that it says. Raises `SampleError` when it is none."""
    if not isinstance(turn, dict) or 'role' not in turn or not speaks(turn):
        keys = sorted(turn) if isinstance(turn, dict) else type(turn).__name__
        raise SampleError(
            f"turn {index} is no {{'role', 'content'}} message but {keys}. "
            "Rows with 'from' and 'value' are for the template ShareGPT."
        )
    refuse_unheeded(f'turn {index}', turn)
    if turn.get('content') is None and not speaks({key: value for key, value in turn.items() if key != 'content'}):
        raise SampleError(f'turn {index} ({turn["role"]}) has null content.')
    return {**filled(turn), 'role': turn['role'], 'content': turn.get('content')}


def written_turns(value: Any, where: str, speak: Callable[[str], dict[str, Any]]) -> Turns:
    """Returns a prompt or an answer as turns: messages as they are, also from their JSON text; text said by `speak`.

    Raises `SampleError` naming `where` for anything else.
    """
    if isinstance(value, str):
        # What tables hold as JSON text; a text that only looks like it stays a text.
        parsed = from_json(value)
        first = parsed[0] if isinstance(parsed, list) and parsed else parsed
        value = parsed if isinstance(first, Mapping) and 'role' in first and speaks(first) else value
    if isinstance(value, Mapping):
        value = records(value, where) if isinstance(value.get('role'), (list, tuple)) else [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [message(index, turn) for index, turn in enumerate(value)]
    return [speak(as_text(value, where))]
