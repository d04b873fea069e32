"""One instruction, one answer and perhaps a history, in columns of any name."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, as_text, filled, items, text
from align_anything.datasets.formatters.mapped import AnsweringFormatter
from align_anything.datasets.formatters.turns import Sample, Turns, assistant, user


@register_template('Instruction')
class Instruction(AnsweringFormatter):
    """An instruction, an optional input below it, an answer, and earlier rounds.

    Attributes:
        prompt: column with the instruction; by default `instruction`, `prompt` or `question`; where the answers are
            media, also `caption` or `text`.
        input: column with what the instruction works on; by default `input`, where the row has it.
        response: column with the answer; by default `output`, `response` or `answer`; where the answers are media, also
            the name of their kind.
        history: column with earlier rounds, a list of `[question, answer]`; by default `history`, where the row has it.
    """

    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    history: str | None = None

    _answer_columns = MappingProxyType({'response': ('output', 'response', 'answer', '{}')})

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self._prompt(raw_sample)
        name = self.answer_column(raw_sample, 'response')
        if self.answer_kind():
            return [*prompt, self.medium(raw_sample[name], f"column '{name}'")], meta
        return [*prompt, assistant(text(raw_sample, name))], meta

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self._prompt(raw_sample)
        name = None if self.answer_kind() else self.find(raw_sample, 'response', self._usual('response'))
        return prompt, {**meta, 'ground_truth': text(raw_sample, name)} if name and filled(raw_sample, name) else meta

    def _prompt(self, row: Row) -> tuple[Turns, dict[str, Any]]:
        usual = self.prompt_columns('instruction', 'prompt', 'question')
        instruction = text(row, self.require(row, 'prompt', usual))
        addition = self.find(row, 'input', ('input',))
        if addition and filled(row, addition) and text(row, addition):
            instruction = f'{instruction}\n{text(row, addition)}'
        return [*self.opening_of(row, False), *self._history(row), user(instruction)], self.beside(row)

    def _history(self, row: Row) -> Turns:
        name = self.find(row, 'history', ('history',))
        if not name or not filled(row, name):
            return []
        turns = []
        for index, entry in enumerate(items(row, name)):
            if not isinstance(entry, (list, tuple)) or len(entry) != 2:
                raise SampleError(f"entry {index} of column '{name}' should be [question, answer] but is {entry!r}.")
            question, answer = (as_text(part, f"entry {index} of column '{name}'") for part in entry)
            turns += [user(question), assistant(answer)]
        return turns
