"""Summaries of posts."""

from __future__ import annotations

import zlib

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.turns import Sample, assistant, user


@register_template('TLDR')
class TLDR(BaseFormatter):
    """Columns `content`, `summary`.

    Attributes:
        requests: ways to ask for a summary; each stands before the content of some rows.
    """

    requests: tuple[str, ...] = (
        'Summarize this text: ',
        'Write a short summary of the following text: ',
        'What does this text say, in a few sentences? ',
        'Give me the main points of this text: ',
        'Put the following text into a brief summary: ',
        'Please condense this text for me: ',
        'I have no time to read all of this. Summarize it: ',
        'Here is a text. Tell me briefly what it is about: ',
    )

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        content = text(raw_sample, 'content')
        # Chosen by the text, not at random: a resumed run and every worker must ask the same way.
        request = self.requests[zlib.crc32(content.encode()) % len(self.requests)]
        return [*self.opening(), user(request + content), assistant(text(raw_sample, 'summary'))], {}
