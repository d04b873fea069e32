"""Conversations that were written out with the header tokens of Llama 3."""

from __future__ import annotations

import re

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.turns import Sample

BEGIN, END_OF_TURN = '<|begin_of_text|>', '<|eot_id|>'
TURN = re.compile(r'\s*<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>(?:\n\n)?(.*)', re.DOTALL)


@register_template('Bagel_Llama3')
class BagelLlama3(BaseFormatter):
    """Columns `input`, `output` and as wanted `source`: one text of turns, cut behind the header of its last answer.

    Attributes:
        skip_sources: values of `source` whose rows are filtered; by default plain texts, which are no conversations.
    """

    skip_sources: tuple[str, ...] = ('comedy-snippets_plain_text', 'cinematika_scenes_plain_text')

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        written = text(raw_sample, 'input') + text(raw_sample, 'output')
        parts = written.removeprefix(BEGIN).split(END_OF_TURN)
        found = [TURN.fullmatch(part) for part in parts if part.strip()]
        if not all(found):
            part = next(part for part, match in zip(filter(str.strip, parts), found, strict=True) if match is None)
            raise SampleError(f'the text has a turn without a header of Llama 3 that names its role: {part[:60]!r}.')
        turns = [{'role': match[1], 'content': match[2]} for match in found if match is not None]
        has_system_turn = any(turn['role'] == 'system' for turn in turns)
        return [*([] if has_system_turn else self.opening()), *turns], {}

    def check_validation(self, raw_sample: Row) -> bool:
        return raw_sample.get('source') not in self.skip_sources
