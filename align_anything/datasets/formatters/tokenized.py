"""Rows of token ids in which texts and the codes of images stand together, as align-anything's scripts write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, items
from align_anything.datasets.formatters.turns import PairSample, Sample, Turns

MARK = '\ue0d0'
"""What stands for an image between the texts."""
FORMS = (('<|User|>:', '<|Assistant|>:'), ('USER:', 'ASSISTANT:'))
"""What opens the question and the answer, in the files of Janus and of Chameleon."""
OPENS_TO_THE_END = '<begin_of_image>'
"""Behind this token, Janus' files have nothing but codes, counted from 0 in their book."""
CODE = re.compile('IMGIMG[A-Z]+')
"""Tokens of Chameleon that are codes; one token stands before each image and one behind it."""


class Ids(NamedTuple):
    """What is known of a tokenizer.

    Attributes:
        decode: from ids to their text.
        dropped: ids at either end that say nothing: the beginning and the end of a sequence, padding.
        opens: id of the token behind which only codes stand, None where there is no such token.
        codes: the first id that is a code and the one behind the last, None where no token is one.
    """

    decode: Any
    dropped: frozenset[int]
    opens: int | None
    codes: tuple[int, int] | None


@register_template('Tokenized')
class Tokenized(BaseFormatter):
    """Columns `input_ids`, or `better_input_ids` and `worse_input_ids`: the ids of a question and its answer.

    They are taken apart into texts and images, which the model's own tokenizer and chat template write again.

    Attributes:
        tokenizer: folder of the tokenizer that made the ids: that of the checkpoint they were made with.
        user: text that opens the question; by default those of Janus' and Chameleon's files are known.
        assistant: text that opens the answer.
    """

    tokenizer: str = ''
    user: str = ''
    assistant: str = ''

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        if 'better_input_ids' in raw_sample:
            return super().format_supervised_sample(raw_sample)
        question, answer = self._turns(raw_sample, 'input_ids')
        if not answer['content']:
            raise SampleError("column 'input_ids' ends before the answer: it is a prompt alone.")
        return [*self.opening(), question, answer], {}

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        better, worse = (
            [*self.opening(), *self._turns(raw_sample, f'{name}_input_ids')] for name in ('better', 'worse')
        )
        return better, worse, {}

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        name = 'better_input_ids' if 'better_input_ids' in raw_sample else 'input_ids'
        return [*self.opening(), self._turns(raw_sample, name)[0]], {}

    def _turns(self, row: Row, name: str) -> Turns:
        if not self.tokenizer:
            raise DataError(
                "template 'Tokenized' needs the option tokenizer: the folder of the checkpoint that the ids were made "
                'with, to read them back.'
            )
        known, ids = _ids_of(self.tokenizer), items(row, name)
        if not all(type(token) is int and token >= 0 for token in ids):
            raise SampleError(f"column '{name}' should be a list of token ids.")
        text, images = _apart(known, ids)
        return self._told_apart(text, images, name)

    def _told_apart(self, text: str, images: list[Any], name: str) -> Turns:
        forms = [(self.user, self.assistant)] if self.user and self.assistant else FORMS
        for user, assistant in forms:
            before, opened, rest = text.partition(user)
            question, answered, answer = rest.partition(assistant)
            if opened and answered and not before.strip() and user not in answer and assistant not in answer:
                shown = question.count(MARK)
                return [
                    {'role': 'user', 'content': _parts(question, images[:shown])},
                    {'role': 'assistant', 'content': _parts(answer, images[shown:])},
                ]
        raise SampleError(
            f"where the question and the answer begin cannot be told in column '{name}': '{text[:80]}'. Say what opens "
            'them with the template options user and assistant. Conversations of several turns go into Messages, with '
            "the codes of an image as {'type': 'image', 'image': {'codes': …, 'size': [height, width]}}."
        )


def _apart(known: Ids, ids: Sequence[int]) -> tuple[str, list[Any]]:
    """Returns the text of ids, with a mark for each image, and the images as records of their codes."""
    start = next((at for at, token in enumerate(ids) if token not in known.dropped), len(ids))
    if known.opens is not None and known.opens in ids:
        opened = ids.index(known.opens)
        return known.decode(ids[start:opened]) + MARK, [_image(ids[opened + 1 :])]
    stop = next((at for at in range(len(ids), start, -1) if ids[at - 1] not in known.dropped), start)
    if known.codes is None:
        return known.decode(ids[start:stop]), []
    first, end = known.codes
    stretches = [(is_code, list(run)) for is_code, run in groupby(ids[start:stop], lambda token: first <= token < end)]
    images = [_image([token - first for token in run]) for is_code, run in stretches if is_code]
    texts = []
    for number, (is_code, run) in enumerate(stretches):
        if is_code:
            texts.append(MARK)
            continue
        # What opens an image stands at the end of the text before it, what closes it at the beginning of the next.
        opens, closes = number + 1 < len(stretches), number > 0
        texts.append(known.decode(run[int(closes) : len(run) - int(opens)]))
    return ''.join(texts), images


def _image(codes: list[int]) -> dict[str, Any]:
    side = math.isqrt(len(codes))
    if not side or side**2 != len(codes):
        raise SampleError(f'an image of the row has {len(codes)} codes, which make no square.')
    return {'codes': codes, 'size': [side, side]}


def _parts(text: str, images: list[Any]) -> list[dict[str, Any]]:
    """Returns a text with marks as parts, the images where the marks stand."""
    parts: list[dict[str, Any]] = []
    waiting = iter(images)
    for number, words in enumerate(text.split(MARK)):
        if number:
            parts.append({'type': 'image', 'image': next(waiting)})
        if words.strip():
            parts.append({'type': 'text', 'text': words.strip()})
    return parts


@cache
def _ids_of(folder: str) -> Ids:
    """Returns what is known of the tokenizer in `folder`. Raises DataError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition('\n')[0]
        raise DataError(f"template 'Tokenized': no tokenizer can be read in '{folder}' ({reason}).") from error
    vocabulary = tokenizer.get_vocab()
    codes = [number for token, number in vocabulary.items() if CODE.fullmatch(token)]
    if codes and max(codes) - min(codes) + 1 != len(codes):
        raise DataError(f"template 'Tokenized': the codes of images in '{folder}' do not stand side by side.")
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.replace(MARK, '')

    span = (min(codes), max(codes) + 1) if codes else None
    return Ids(decode, frozenset(ends), vocabulary.get(OPENS_TO_THE_END), span)
