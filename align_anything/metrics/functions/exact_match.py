"""The answer is one of the golden ones, once both are written alike."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from align_anything.metrics.base import register_metric
from align_anything.metrics.samples import Samples

ARTICLES = re.compile(r'\b(?:a|an|the)\b')
PUNCTUATION = str.maketrans('', '', string.punctuation + '。，、！？：；“”‘’')


def normalised(text: str) -> str:
    """Returns a text in lower case without punctuation, articles, and more than single spaces, as SQuAD compares."""
    return ' '.join(ARTICLES.sub(' ', text.casefold().translate(PUNCTUATION)).split())


def matches(answer: str, references: Sequence[str], *, normalise: bool = True) -> float:
    """Returns 1 where an answer is the same text as one of its references, else 0.

    What consists of punctuation alone is compared as it is, for nothing else would be left of it.
    """
    if normalise and any(map(normalised, references)):
        return float(normalised(answer) in {normalised(text) for text in references} - {''})
    return float(answer.strip() in {text.strip() for text in references})


@register_metric('exact_match', is_pure=True)
def exact_match(samples: Samples, *, column: str | None = None, normalise: bool = True) -> list[float | None]:
    """1 for an answer that is one of the golden ones, 0 for any other.

    The answer is what stands in `<answer>…</answer>`, else what follows `</think>`, else the whole response.

    Args:
        samples: the responses.
        column: column of the row's meta with the golden answers; None is its reference answer.
        normalise: compares without case, punctuation, articles and white space, as SQuAD does.
    """
    return [matches(sample.answer, sample.references(column), normalise=normalise) for sample in samples]
