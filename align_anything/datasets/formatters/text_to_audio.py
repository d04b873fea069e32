"""Datasets of sounds, music and speech that were made from texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import (
    Row,
    as_text,
    chosen_id,
    column,
    filled,
    first_of,
    from_json,
    is_chosen_id,
    text,
    texts,
)
from align_anything.datasets.formatters.from_text import Chosen, FromText
from align_anything.datasets.formatters.turns import Sample, request_for
from align_anything.datasets.local_files import MEDIA_SUFFIXES


@register_template('WavCaps')
class WavCaps(FromText):
    """Columns `answer` (what is heard), `context` (the audio); or of the JSON files `caption`, `id`.

    Such a clip is called `<id>.flac`, unless its id has a suffix already.
    """

    _kind = 'audio'

    def wording(self, row: Row) -> str:
        return text(row, first_of(row, ('answer', 'caption')))

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        if 'context' in raw_sample:
            return self.answered(raw_sample, column(raw_sample, 'context')), {}
        name = text(raw_sample, 'id')
        return self.answered(
            raw_sample, name if f'.{name.rpartition(".")[2]}' in MEDIA_SUFFIXES else f'{name}.flac'
        ), {}


@register_template('Clotho')
class Clotho(FromText):
    """Columns `file_name` or `audio`, and `caption_1` to `caption_5`, or a list in `captions`.

    Each clip is asked for by one of its captions, always the same.
    """

    _kind = 'audio'

    def wording(self, row: Row) -> str:
        names = [f'caption_{number}' for number in range(1, 6) if filled(row, f'caption_{number}')]
        captions = [text(row, name) for name in names] or texts(row, first_of(row, ('captions', 'caption_1')))
        if not captions:
            raise SampleError("column 'captions' is an empty list.")
        return request_for('\n'.join(captions), captions)

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        return self.answered(raw_sample, column(raw_sample, first_of(raw_sample, ('audio', 'file_name')))), {}


@register_template('AA_T2A')
class AA_T2A(Chosen):
    """Columns `prompt`, `response_1`, `response_2`, `overall_audio` (1 or 2, the preferred one)."""

    _kind = 'audio'

    def judged(self, row: Row) -> tuple[Any, Any]:
        better = chosen_id(row, 'overall_audio', (1, 2))
        return column(row, f'response_{better}'), column(row, f'response_{3 - better}')

    def check_validation(self, raw_sample: Row) -> bool:
        return is_chosen_id(raw_sample, 'overall_audio', (1, 2))


@register_template('SOMOS')
class SOMOS(Chosen):
    """Columns `prompt`, `better_data_path`, `worse_data_path`: speech that sounds more and less natural."""

    _kind = 'audio'
    _better = 'better_data_path'
    _worse = 'worse_data_path'


@register_template('TTS')
class TTS(FromText):
    """A text and how it is spoken: the columns of LibriTTS, LJSpeech, Common Voice, GigaSpeech, MLS, and of Emilia.

    Emilia has its text in the record `json`.

    Attributes:
        voice: column with the name of the speaker, which is put before the text; by default voices are not named.
    """

    voice: str = ''
    _kind = 'audio'
    _texts: tuple[str, ...] = (
        'text',
        'text_normalized',
        'normalized_text',
        'text_original',
        'transcription',
        'transcript',
        'sentence',
    )
    _audios: tuple[str, ...] = ('audio', 'mp3', 'wav', 'flac')

    def wording(self, row: Row) -> str:
        told = self._told(row)
        name = first_of(told, self._texts)
        said = as_text(column(told, name), f"column '{name}'")
        voice = f'{as_text(column(told, self.voice), f"column {self.voice!r}")}: ' if self.voice else ''
        return f'{voice}{said}'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        return self.answered(raw_sample, column(raw_sample, first_of(raw_sample, self._audios))), {}

    def _told(self, row: Row) -> Mapping[str, Any]:
        """What is known of the recording: the row itself, or what its column `json` says."""
        if 'json' not in row:
            return row
        record = from_json(column(row, 'json'))
        if not isinstance(record, Mapping):
            raise SampleError(f"column 'json' should be a record but is {type(record).__name__}.")
        return record
