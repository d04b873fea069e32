"""Multiple choice: the letter, or the text of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Annotated

from pydantic import Field

from align_anything.core.errors import DataError
from align_anything.metrics.base import Measured, register_metric
from align_anything.metrics.functions.exact_match import normalised
from align_anything.metrics.samples import Sample, Samples, texts_in
from align_anything.rewards.functions.choice import chosen_letter

CHOICES = 'choices'


def chosen(answer: str, choices: Sequence[str], letters: str) -> str | None:
    """Returns the letter that an answer decides for, by the letter or by the text of one of the choices; else None.

    A whole answer that is a choice goes before letters in it, and these before a choice that stands somewhere in it.
    """
    said = normalised(answer)
    plain = [normalised(choice) for choice in choices]
    if said and plain.count(said) == 1:
        return letters[plain.index(said)]
    letter = chosen_letter(answer, letters)
    if letter is not None:
        return letter
    inside = [number for number, choice in enumerate(plain) if choice and f' {choice} ' in f' {said} ']
    # A choice that is a stretch of another one found is not meant by itself.
    longest = [n for n in inside if not any(n != m and plain[n] in plain[m] for m in inside)]
    return letters[longest[0]] if len(longest) == 1 else None


@register_metric('choice', is_pure=True)
def choice(
    samples: Samples,
    *,
    column: str | None = None,
    letters: Annotated[str | None, Field(pattern='^[A-Z]{2,}$')] = None,
) -> Measured:
    """1 for an answer that decides for the right choice, 0 for another one or none.

    Read are a letter in its many forms (`C`, `(C)`, `C. Paris`, `\\boxed{C}`, `The answer is C`) and the text of a
    choice, where the row's meta has them in `choices`. The golden answer is a letter, a number of a choice from 0 where
    it is given as `column`, or its text.

    Args:
        samples: the responses.
        column: column of the row's meta with the golden answer; None is its reference answer.
        letters: letters of the choices; None is as many as there are choices, or A to D.
    """
    values: list[float | None] = []
    undecided = 0
    for sample in samples:
        choices = texts_in(sample.meta.get(CHOICES))
        own = letters or (ascii_uppercase[: len(choices)] if choices else 'ABCD')
        given = chosen(sample.answer, choices, own)
        undecided += given is None
        values.append(float(given == _golden(sample, column, choices, own)))
    return Measured(values, details={'undecided': undecided})


def _golden(sample: Sample, column: str | None, choices: Sequence[str], letters: str) -> str:
    (text, *_) = sample.references(column)
    if column is not None and text.isdecimal() and int(text) < len(choices):
        return letters[int(text)]
    letter = chosen(text, choices, letters)
    if letter is None:
        raise DataError(f'{sample.source}: the golden answer {text[:60]!r} is none of the choices {letters}.')
    return letter
