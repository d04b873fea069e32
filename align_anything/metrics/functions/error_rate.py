"""Word and character error rates of what a model writes down, over all samples together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align_anything.core.errors import DataError
from align_anything.metrics.base import Measured, register_metric
from align_anything.metrics.samples import Sample, Samples
from align_anything.rewards.edit_distance import edit_distance, plain_words


def words_of(text: str, plain: bool = True) -> list[str]:
    """Returns the words of a text, `plain` ones in lower case and without punctuation but apostrophes."""
    return plain_words(text) if plain else text.split()


def characters_of(text: str, plain: bool = True) -> list[str]:
    """Returns the characters of a text, single spaces between its words counting as such."""
    return list(' '.join(words_of(text, plain)))


def fewest_errors(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Returns the edit distance to the reference with the lowest rate of errors, and the length of it."""
    found = [(edit_distance(said, reference), len(reference)) for reference in wanted]
    return min(found, key=lambda pair: (pair[0] / pair[1], pair[0]))


@register_metric('wer', lower_is_better=True, is_pure=True)
def wer(samples: Samples, *, column: str | None = None, plain: bool = True) -> Measured:
    """Word error rate: the edits that turn the answers into their references over the words of these.

    It is that of all samples together, not the mean of theirs, and may be above 1.

    Args:
        samples: the responses.
        column: column of the row's meta with the reference, of several the nearest; None is its reference answer.
        plain: case and punctuation do not count.

    Raises:
        DataError: a reference has no word.
    """
    return _rate(samples, column, lambda text: words_of(text, plain), 'words')


@register_metric('cer', lower_is_better=True, is_pure=True)
def cer(samples: Samples, *, column: str | None = None, plain: bool = True) -> Measured:
    """Character error rate: as `wer`, of characters; for languages without spaces between words.

    Args:
        samples: the responses.
        column: column of the row's meta with the reference, of several the nearest; None is its reference answer.
        plain: case and punctuation do not count.

    Raises:
        DataError: a reference has no character.
    """
    return _rate(samples, column, lambda text: characters_of(text, plain), 'characters')


def _rate(samples: Samples, column: str | None, units: Callable[[str], list[str]], name: str) -> Measured:
    found = [fewest_errors(units(sample.answer), _references(sample, column, units)) for sample in samples]
    lengths = [float(length) for _, length in found]
    return Measured([float(errors) for errors, _ in found], lengths, details={name: int(sum(lengths))})


def _references(sample: Sample, column: str | None, units: Callable[[str], list[str]]) -> list[list[str]]:
    found = [units(text) for text in sample.references(column)]
    if not all(found):
        raise DataError(f'{sample.source}: a reference has nothing but punctuation; leave the row out.')
    return found
