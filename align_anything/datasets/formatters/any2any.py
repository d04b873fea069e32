"""The two JSON forms of any2any_trainer, whose questions and answers may hold any media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import MEDIA_KINDS
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, as_text, column, filled, from_json, items, text
from align_anything.datasets.formatters.columns import turns as turns_of
from align_anything.datasets.formatters.sharegpt import ROLES
from align_anything.datasets.formatters.turns import Meta, Sample, Turns
from align_anything.datasets.turn_keys import beside, several

MODALITIES = ('text', *MEDIA_KINDS)


@register_template('Any2Any_Conv')
class Any2AnyConv(BaseFormatter):
    """A list of turns `{'role', 'content'}`, each with its own `image`, `audio` or `video` as wanted, one or a list.

    Media of a question go before its text, those of an answer behind it, unless it says itself where they stand
    (`<image>`).

    Attributes:
        conversation_field: column with the list of turns.
    """

    conversation_field: str = 'conversations'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        meta: Meta = {kind: [] for kind in MEDIA_KINDS}
        turns = [
            self._turn(index, turn, meta) for index, turn in enumerate(turns_of(raw_sample, self.conversation_field))
        ]
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        return [*([] if has_system_turn else self.opening()), *turns], meta

    def _turn(self, index: int, turn: Any, meta: Meta) -> dict[str, Any]:
        if not isinstance(turn, Mapping):
            raise SampleError(f'turn {index} should be a record but is {type(turn).__name__}.')
        role = text(turn, 'role')
        if role not in ROLES:
            raise SampleError(f"turn {index} has the unknown role '{role}'. Known: {', '.join(ROLES)}.")
        shown = [kind for kind in MEDIA_KINDS if filled(turn, kind)]
        words = text(turn, 'content') if filled(turn, 'content') or not shown else ''
        rest = beside(f'turn {index}', turn, 'role', 'content', *MEDIA_KINDS)
        content = _with_media(ROLES[role], words, turn, shown, meta) if shown else words
        return {**rest, 'role': ROLES[role], 'content': content}


@register_template('Any2Any_IO')
class Any2AnyIO(BaseFormatter):
    """Columns `input` and `output`: records with `modalities` and a key for each of them."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self._prompt(raw_sample)
        return [*prompt, _turn(raw_sample, 'output', 'assistant', meta)], meta

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self._prompt(raw_sample)
        output = raw_sample.get('output')
        only_text = isinstance(output, Mapping) and not any(filled(output, kind) for kind in MEDIA_KINDS)
        if only_text and filled(output, 'text'):
            meta['ground_truth'] = text(output, 'text')
        return prompt, meta

    def _prompt(self, row: Row) -> tuple[Turns, Meta]:
        meta: Meta = {kind: [] for kind in MEDIA_KINDS}
        return [*self.opening(), _turn(row, 'input', 'user', meta)], meta


def _turn(row: Row, name: str, role: str, meta: Meta) -> dict[str, Any]:
    """Returns what a record of the row says as a turn, and puts its media to the others in `meta`."""
    given = _record(row, name)
    modalities = _modalities(given, name)
    words = as_text(given['text'], f"'text' of '{name}'") if 'text' in modalities else ''
    kinds = [kind for kind in modalities if kind != 'text']
    return {'role': role, 'content': _with_media(role, words, given, kinds, meta) if kinds else words}


def _with_media(
    role: str, words: str, record: Mapping[str, Any], kinds: Sequence[str], meta: Meta
) -> list[dict[str, Any]]:
    """Returns the parts of a turn, and puts its media to the others that wait in `meta` for their positions."""
    parts = []
    for kind in kinds:
        media = several(record[kind])
        meta[kind] += media
        if f'<{kind}>' not in words:
            parts += [{'type': kind} for _ in media]
    said = [{'type': 'text', 'text': words}] if words else []
    return [*said, *parts] if role == 'assistant' else [*parts, *said]


def _record(row: Row, name: str) -> Mapping[str, Any]:
    record = from_json(column(row, name))
    if not isinstance(record, Mapping):
        raise SampleError(f"column '{name}' should be a record but is {type(record).__name__}.")
    return record


def _modalities(record: Mapping[str, Any], name: str) -> list[str]:
    """Returns what the record says it holds, or else what it holds."""
    if not filled(record, 'modalities'):
        return [kind for kind in MODALITIES if filled(record, kind)]
    listed = items(record, 'modalities')
    unknown = [kind for kind in listed if kind not in MODALITIES]
    missing = [kind for kind in listed if kind in MODALITIES and not filled(record, kind)]
    if unknown or missing or not listed:
        wrong = f'the unknown {unknown}' if unknown else f'{missing}, which it lacks' if missing else 'nothing'
        raise SampleError(f"'modalities' of '{name}' lists {wrong}. Known: {', '.join(MODALITIES)}.")
    return listed
