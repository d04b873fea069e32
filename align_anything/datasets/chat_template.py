"""A template together with where its media are: raw rows in, conversations in normal form out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.types import Conversation
from align_anything.datasets.conversation import bind_media, without_media
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row
from align_anything.datasets.formatters.turns import Meta


class BoundTemplate:
    """Calls a formatter's hooks and binds what they return, ready for the model family to decode and render.

    Each method bears the name of the hook it calls and returns the same, with conversations in normal form (media in
    their positions, not decoded) and `meta` without the media. All raise `SampleError` for a row that cannot be used,
    `DataError` for a hook that the template lacks.
    """

    def __init__(
        self,
        formatter: BaseFormatter,
        folders: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Pairs `formatter` with `folders`, where relative paths of each kind of media start, and decoding `options`.

        A folder that the formatter was given itself goes first.
        """
        self.formatter = formatter
        self.folders = {**formatter.folders_of_environment(), **(folders or {}), **formatter.folders()}
        self.options = dict(options or {})

    def format_supervised_sample(self, raw_sample: Row) -> tuple[Conversation, Meta]:
        """Returns `(conversation, meta)`; the conversation ends with an answer."""
        conversation, meta = self.formatter.format_supervised_sample(raw_sample)
        return self.bind(conversation, meta), without_media(meta)

    def format_preference_sample(self, raw_sample: Row) -> tuple[Conversation, Conversation, Meta]:
        """Returns `(better conversation, worse conversation, meta)`."""
        better, worse, meta = self.formatter.format_preference_sample(raw_sample)
        return self.bind(better, meta), self.bind(worse, meta), without_media(meta)

    def format_prompt_only_sample(self, raw_sample: Row) -> tuple[Conversation, Meta]:
        """Returns `(conversation, meta)`; the conversation ends with the turn to answer."""
        conversation, meta = self.formatter.format_prompt_only_sample(raw_sample)
        return self.bind(conversation, meta, needs_reply=False), without_media(meta)

    def format_unmatched_supervised_sample(
        self, raw_sample_for_prompt: Row, raw_sample_for_response: Row
    ) -> tuple[Conversation, Meta]:
        """Returns `(conversation, meta)`: the prompt of one row with the answer of another."""
        hook = self.formatter.format_unmatched_supervised_sample
        conversation, meta = hook(raw_sample_for_prompt, raw_sample_for_response)
        return self.bind(conversation, meta), without_media(meta)

    def check_equal(self, raw_sample: Row) -> bool:
        """Tells whether both answers of a preference row are the same."""
        return self.formatter.check_equal(raw_sample)

    def check_validation(self, raw_sample: Row) -> bool:
        """Tells whether the template can use the row at all."""
        return self.formatter.check_validation(raw_sample)

    def bind(self, conversation: Sequence[Mapping[str, Any]], meta: Meta, needs_reply: bool = True) -> Conversation:
        """Returns a conversation of a hook in normal form, with the media of `meta` in it, as `bind_media` does."""
        return bind_media(conversation, meta, self.folders, options=self.options, needs_reply=needs_reply)
