"""Reasoning in steps before the answer."""

from __future__ import annotations

import os
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, items, text
from align_anything.datasets.formatters.turns import Sample, assistant, user

VARIABLE = 'O1_SPECIAL_TOKENS'


def _of_environment() -> dict[str, list[str]]:
    """The marks as align-anything takes them: a list in a variable, of which the first three are read."""
    inner = os.environ.get(VARIABLE, '').strip().removeprefix('[').removesuffix(']')
    return {'special_tokens': [mark.strip().strip('\'"') for mark in inner.split(',')][:3]} if inner else {}


@register_template('O1_T2T')
class O1_T2T(BaseFormatter):
    """Columns `prompt`, `thoughts` (a list of records with `content` and perhaps `title`), `answer`.

    Attributes:
        special_tokens: three marks: before the thoughts, after each thought, and between thoughts and answer.
            The variable O1_SPECIAL_TOKENS gives them where the option does not.
    """

    special_tokens: tuple[str, ...] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**_of_environment(), **options})
        if len(self.special_tokens) != 3:
            raise DataError(
                'template O1_T2T needs the option special_tokens, a list of three marks: before the thoughts, after '
                "each thought, before the answer, such as ['<think>', '<step>', '</think>']; "
                f'it has {list(self.special_tokens)}.'
            )

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        start, after_thought, before_answer = self.special_tokens
        thoughts = ''.join(f'{_thought(thought)}\n{after_thought}\n' for thought in items(raw_sample, 'thoughts'))
        answer = f'{start}{thoughts}{before_answer}{text(raw_sample, "answer")}'
        return [*self.opening(), user(text(raw_sample, 'prompt')), assistant(answer)], {}


def _thought(thought: Any) -> str:
    if not isinstance(thought, dict):
        raise SampleError(f"an entry of column 'thoughts' should be a record but is {type(thought).__name__}.")
    title = f'**{thought["title"]}**\n' if thought.get('title') else ''
    return title + text(thought, 'content')
