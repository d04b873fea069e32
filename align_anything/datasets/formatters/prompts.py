"""Prompts for online training with what their responses are judged by, as TRL and verl write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import MEDIA_KINDS
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column, filled, from_json, missing
from align_anything.datasets.formatters.mapped import MappedFormatter, columns_of
from align_anything.datasets.formatters.messages import written_turns
from align_anything.datasets.formatters.turns import Sample, Turns, user

ANSWERS = ('answer', 'ground_truth', 'solution', 'reward_model.ground_truth')


@register_template('Prompts')
class Prompts(MappedFormatter):
    """A prompt, text or a list of messages, and the golden answer, which becomes `meta['ground_truth']`.

    Attributes:
        prompt: column with the prompt; by default `prompt`, `messages` or `question`.
        answer: column with the golden answer, `a.b` for the key `b` of the record in column `a`; by default the first
            of `answer`, `ground_truth`, `solution` and `reward_model.ground_truth` that the row has.
        keep_columns: hands all other columns to reward functions, as `meta` under their own names.
        continue_final_message: lets responses go on from a last turn of the assistant, as `'prefix': True` in that turn
            does; else such a row is refused.
    """

    prompt: str | None = None
    answer: str | None = None
    keep_columns: bool = False
    continue_final_message: bool = False

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        name = self.require(raw_sample, 'prompt', ('prompt', 'messages', 'question'))
        turns = self._turns(raw_sample, name)
        media = self.beside(raw_sample)
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        opening = self.opening_of(raw_sample, has_system_turn)
        meta = {**(self._others(raw_sample, name) if self.keep_columns else {}), **media, **self._golden(raw_sample)}
        return [*opening, *turns], meta

    def _turns(self, row: Row, name: str) -> Turns:
        turns = written_turns(column(row, name), f"column '{name}'", user)
        if turns and turns[-1]['role'] == 'assistant':
            if not (self.continue_final_message or turns[-1].get('prefix')):
                raise SampleError(
                    f"column '{name}' ends with a turn of the assistant: set the template option "
                    'continue_final_message: True if responses are to go on from it, or leave the turn out.'
                )
            turns[-1] = {**turns[-1], 'prefix': True}
        return turns

    def _golden(self, row: Row) -> dict[str, Any]:
        """The golden answer as `meta` holds it, empty where the row has none."""
        if self.answer is not None:
            path = self.answer
            if path and not _has(row, path):
                raise missing(row, [path])
        else:
            path = next((path for path in ANSWERS if _value(row, path) is not None), '')
        return {'ground_truth': _value(row, path)} if path and _value(row, path) is not None else {}

    def _others(self, row: Row, prompt: str) -> dict[str, Any]:
        media = {name for kind in MEDIA_KINDS for name in (kind, f'{kind}s')}
        mapped = [name for named in (self.images, self.videos, self.audios) for name in columns_of(row, named)]
        placed = {*media, *mapped, 'tools', prompt}
        # Past the view of the row: a picture column that is only handed on is one that nobody shows to the model.
        return {name: value for name, value in dict.items(row) if name not in placed}


def _value(row: Row, path: str) -> Any:
    """What stands at `path`, a column or a key of the record in one; None where nothing does."""
    if filled(row, path):
        return row[path]
    record, key = _record(row, path)
    return record.get(key)


def _has(row: Row, path: str) -> bool:
    record, key = _record(row, path)
    return path in row or key in record


def _record(row: Row, path: str) -> tuple[Mapping[str, Any], str]:
    """The record in column `a` of the path `a.b`, also from JSON text, and `b`; an empty one where there is none."""
    name, _, key = path.partition('.')
    record = from_json(row.get(name)) if key else None
    return (record if isinstance(record, Mapping) else {}), key
