"""What preference learning wants of a row: a pair of answers, or answers that are good or bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from align_anything.core.errors import DataError, FilteredError, SampleError
from align_anything.core.types import Conversation, Example, Piece
from align_anything.datasets.dataset import Formatted
from align_anything.datasets.formatters.base import PREFERENCE, SUPERVISED, BaseFormatter
from align_anything.datasets.formatters.columns import number

Row = dict[str, Any]
EncodeGroup = Callable[..., Example]


@dataclass(frozen=True)
class PreferenceTask:
    """Two conversations that first differ at an answer, the better one first.

    Attributes:
        encode_group: `FamilySpec.encode_group`.
        train_on: `all_assistant` turns from the first differing one on, or the `last`.
        meta_keys: what the row's meta must hold.
        judged: whether the model reads the answers to score them, and does not learn to write them.
        soft_labels: whether `meta['soft_label']` is read, the probability that the first answer is the better one.
            Below 0.5 the answers change places.
    """

    encode_group: EncodeGroup
    train_on: str = 'all_assistant'
    meta_keys: tuple[str, ...] = ()
    judged: bool = False
    soft_labels: bool = False
    needs_reply: ClassVar[bool] = True
    needs_other: ClassVar[bool] = False

    def format(self, formatter: BaseFormatter, row: Row, other: Row | None = None) -> Formatted:
        """Returns both conversations.

        Raises SampleError for equal answers, for a meta that lacks something and for a soft label that is no
        probability, DataError for one that nobody reads.
        """
        better, worse, meta = _pair(formatter, row, self.soft_labels)
        missing = [key for key in self.meta_keys if meta.get(key) is None]
        if missing:
            raise SampleError(
                f"template '{formatter.name}' does not tell {' and '.join(missing)} of this row, which the algorithm "
                'needs: choose a template that puts it into meta.'
            )
        return [better, worse], meta

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the pair, media decoded. Raises SampleError where truncation makes answers equal."""
        example = self.encode_group(conversations, self.train_on, judged=self.judged)
        better, worse = example.responses
        if _equal(better, worse):
            raise SampleError('what truncation leaves of the two answers is equal: raise model_cfgs.model_max_length')
        return example


@dataclass(frozen=True)
class UnpairedTask:
    """Answers to a prompt that are each good or bad: one with a label, or both of a pair; and another row's answer.

    The label is `meta['label']`, true for a good answer. The Example's `meta['desirable']` holds one truth value for
    each response, its `unmatched` the answer of the other row to this prompt.

    Attributes:
        encode_group: `FamilySpec.encode_group`.
    """

    encode_group: EncodeGroup
    needs_reply: ClassVar[bool] = True
    needs_other: ClassVar[bool] = True

    def format(self, formatter: BaseFormatter, row: Row, other: Row | None = None) -> Formatted:
        """Returns the answers of the row, then the one of the `other` row. Raises SampleError for a wrong label."""
        if PREFERENCE in formatter.hooks():
            *answered, meta = _pair(formatter, row)
            desirable = [True, False]
        else:
            formatter.require_hook(SUPERVISED)
            conversation, meta = formatter.format_supervised_sample(row)
            if not conversation:
                raise _nothing(formatter)
            answered, desirable = [conversation], [_label(formatter, meta)]
        unmatched, _ = formatter.format_unmatched_supervised_sample(row, other)
        return [*answered, unmatched], {**meta, 'desirable': desirable}

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the answers, media decoded."""
        example = _last_turns(self.encode_group, conversations)
        *example.responses, example.unmatched = example.responses
        return example


@dataclass(frozen=True)
class AnswersTask:
    """The answers of a row, to be scored: both of a pair, else the one there is.

    Attributes:
        encode_group: `FamilySpec.encode_group`.
    """

    encode_group: EncodeGroup
    needs_reply: ClassVar[bool] = True
    needs_other: ClassVar[bool] = False

    def format(self, formatter: BaseFormatter, row: Row, other: Row | None = None) -> Formatted:
        """Returns one conversation for each answer."""
        if PREFERENCE in formatter.hooks():
            better, worse, meta = formatter.format_preference_sample(row)
            _refuse_soft(formatter, meta)
            return [better, worse], {**meta, 'is_pair': True}
        conversation, meta = formatter.format_supervised_sample(row)
        return [conversation], {**meta, 'is_pair': False}

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the answers, media decoded."""
        return _last_turns(self.encode_group, conversations, judged=True)


def _last_turns(encode_group: EncodeGroup, conversations: list[Conversation], judged: bool = False) -> Example:
    """The Example of conversations that differ in their last turn, or in answers of several turns."""
    if len({len(conversation) for conversation in conversations}) > 1:
        return encode_group(conversations, 'all_assistant', judged=judged)
    return encode_group(conversations, 'last', start=len(conversations[0]) - 1, judged=judged)


def _equal(one: Piece, other: Piece) -> bool:
    pairs = list(zip(one.sequences, other.sequences, strict=False))
    return len(one.earlier) == len(other.earlier) and all(
        not mine.media
        and not theirs.media
        and torch.equal(mine.ids, theirs.ids)
        and mine.token_tensors.keys() == theirs.token_tensors.keys()
        and all(torch.equal(tensor, theirs.token_tensors[name]) for name, tensor in mine.token_tensors.items())
        for mine, theirs in pairs
    )


def _pair(formatter: BaseFormatter, row: Row, soft_labels: bool = False) -> tuple[list[Any], list[Any], dict[str, Any]]:
    formatter.require_hook(PREFERENCE)
    better, worse, meta = formatter.format_preference_sample(row)
    if not better and not worse:
        raise _nothing(formatter)
    if formatter.check_equal(row):
        raise SampleError('both answers are the same, so there is nothing to prefer.')
    if not soft_labels:
        _refuse_soft(formatter, meta)
    label = meta.get('soft_label')
    if label is None:
        return better, worse, dict(meta)
    likely = number(label, 'the soft label')
    if not 0 <= likely <= 1:
        raise SampleError(f'the soft label should be a probability, from 0 to 1, but is {label!r}.')
    return (better, worse, dict(meta)) if likely >= 0.5 else (worse, better, {**meta, 'soft_label': 1 - likely})


def _refuse_soft(formatter: BaseFormatter, meta: dict[str, Any]) -> None:
    if meta.get('soft_label') is not None:
        raise DataError(
            f"template '{formatter.name}' gives a soft label (of a tie, for instance), which says how likely the first "
            'answer is the better one, and only rm and losses of pairs such as dpo read it: leave out the option that '
            'asks for it, such as keep_ties.'
        )


def _nothing(formatter: BaseFormatter) -> FilteredError:
    return FilteredError(f"template '{formatter.name}' gives no conversation for the row")


def _label(formatter: BaseFormatter, meta: dict[str, Any]) -> bool:
    label = meta.get('label')
    if label not in (True, False):
        raise SampleError(
            f"the row's label is {label!r}, not true or false. template '{formatter.name}' must give either two "
            "answers (a preference hook) or put the label into meta['label'], as the template Unpaired does."
        )
    return bool(label)
