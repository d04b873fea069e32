"""The JSON of lmms-finetune: turns of two speakers, and media in columns of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Media
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, filled, from_json, text
from align_anything.datasets.formatters.columns import turns as turns_of
from align_anything.datasets.formatters.mapped import MappedFormatter
from align_anything.datasets.formatters.turns import Sample
from align_anything.datasets.turn_keys import beside, several


@register_template('LMMS')
class LMMS(MappedFormatter):
    """Columns `conversations` and, as wanted, `system_prompt`, `image`, `video`, `audio`, `num_frames`.

    `<image>`, `<video>` and `<audio>` stand in the users' turns, as many of each as there are media.

    Attributes:
        user_key, assistant_key: names of the two speakers in `from`.
        num_frames: column with the frames to take: a number for all videos of the row, or a list with one for each.
    """

    user_key: str = 'human'
    assistant_key: str = 'gpt'
    num_frames: str = 'num_frames'

    _systems = ('system_prompt', 'system')

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        turns = [self._turn(index, turn) for index, turn in enumerate(turns_of(raw_sample, 'conversations'))]
        if not turns or len(turns) % 2:
            raise SampleError(f'the conversation has {len(turns)} turns, but every user turn needs one answer.')
        beside = self.beside(raw_sample)
        tools = {'tools': beside.pop('tools')} if 'tools' in beside else {}
        meta = {kind: several(media) for kind, media in beside.items()}
        for kind, media in meta.items():
            asked = sum(turn['content'].count(f'<{kind}>') for turn in turns[::2])
            if asked != len(media):
                raise SampleError(f'the user turns have {asked} <{kind}>, but the row has {len(media)} {kind}(s).')
        if 'video' in meta:
            meta['video'] = self._with_frames(raw_sample, meta['video'])
        return [*self.opening_of(raw_sample, False), *turns], {**meta, **tools}

    def _turn(self, index: int, turn: Any) -> dict[str, Any]:
        if not isinstance(turn, Mapping):
            raise SampleError(f'turn {index} should be a record but is {type(turn).__name__}.')
        speaker, expected = text(turn, 'from'), (self.user_key, self.assistant_key)[index % 2]
        if speaker != expected:
            raise SampleError(
                f"turn {index} is spoken by '{speaker}' but should be by '{expected}': the two take turns. Other names "
                'are set with the template options user_key and assistant_key.'
            )
        rest = beside(f'turn {index}', turn, 'from', 'value')
        return {**rest, 'role': ('user', 'assistant')[index % 2], 'content': text(turn, 'value')}

    def _with_frames(self, row: Row, videos: list[Any]) -> list[Any]:
        if not filled(row, self.num_frames):
            return videos
        asked = from_json(row[self.num_frames])
        numbers = asked if isinstance(asked, (list, tuple)) else [asked] * len(videos)
        if len(numbers) != len(videos):
            raise SampleError(
                f"column '{self.num_frames}' has {len(numbers)} entries, but the row has {len(videos)} video(s)."
            )
        return [
            video if number is None else Media('video', video, {'num_frames': _whole(number)})
            for video, number in zip(videos, numbers, strict=True)
        ]


def _whole(number: Any) -> Any:
    """A number of frames; tables of text hold it as text."""
    return int(number) if isinstance(number, str) and number.strip().isdecimal() else number
