"""The soft accuracy of visual question answering (Antol et al., 2015, arXiv:1505.00468)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.core.errors import DataError
from align_anything.metrics.base import register_metric
from align_anything.metrics.samples import Samples

AGREEING = 3
"""People who say the same that make an answer right."""
FEWEST = 4
NUMBERS = {
    **{name: str(n) for n, name in enumerate('zero one two three four five six seven eight nine ten'.split())},
    'none': '0',
}
ARTICLES = {'a', 'an', 'the'}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
THOUSANDS = re.compile(r'\d,\d')
STOP = re.compile(r'\.(?!\d)')
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've "
    "mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've "
    "something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've "
    "who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd "
    "you'd've you'll you're you've"
).split()
SHORTENED = {
    ''.join(letter for place, letter in enumerate(word) if place != dropped): word
    for word in CONTRACTIONS
    for dropped in (place for place, letter in enumerate(word) if letter == "'")
} | {word.replace("'", ''): word for word in CONTRACTIONS}
"""Contractions by what is left of them without one of their apostrophes, or all."""


def normalised(text: str) -> str:
    """Returns an answer as the benchmark compares it.

    In lower case; punctuation is dropped beside a space, or where the answer has a number with a comma, and is a space
    elsewhere; a stop goes unless a digit follows; number words are digits, articles go, contractions get their
    apostrophes.
    """
    text = ' '.join(text.replace('’', "'").split())
    plain, has_thousands = text, THOUSANDS.search(text) is not None
    for mark in MARKS:
        drops = f'{mark} ' in text or f' {mark}' in text or has_thousands
        plain = plain.replace(mark, '' if drops else ' ')
    words = [NUMBERS.get(word, word) for word in STOP.sub('', plain).lower().split()]
    return ' '.join(SHORTENED.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Returns how right an answer is, 0 to 1, by the answers of several people, ten in the benchmark.

    It is the mean, over all ways to leave one of them out, of min(1, how many of the others say the same / 3). Both
    sides are normalised, also where all people agree, as the servers of the benchmark do.
    """
    said = normalised(answer)
    same = [normalised(other) == said for other in answers]
    return sum(min(1.0, (sum(same) - one) / AGREEING) for one in same) / len(same)


@register_metric('vqa', is_pure=True)
def vqa(samples: Samples, *, column: str = 'answers') -> list[float | None]:
    """How far an answer is what people said, 0 to 1: right where three of the others say the same.

    Args:
        samples: the responses.
        column: column of the row's meta with the answers of several people: texts, or records with an `answer`.

    Raises:
        DataError: a row has fewer than four answers, of which none could be right.
    """
    values: list[float | None] = []
    for sample in samples:
        answers = sample.references(column)
        if len(answers) < FEWEST:
            raise DataError(
                f'{sample.source} has {len(answers)} answer(s) in {column}, but vqa compares with those of at least '
                f'{FEWEST} people: use exact_match.'
            )
        values.append(soft_accuracy(sample.answer, answers))
    return values
