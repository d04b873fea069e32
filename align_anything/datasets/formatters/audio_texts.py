"""Audio clips with a text about them: captions, transcripts, answers."""

from __future__ import annotations

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, as_text, column, text
from align_anything.datasets.formatters.questions import MediaQuestion
from align_anything.datasets.formatters.turns import Sample, assistant, request_for, user_with


class AudioText(BaseFormatter):
    """Rows with an audio clip and the text that the model should write about it.

    Attributes:
        requests: ways to ask for that text; each row is asked in one of them.
        _audio: column of the audio.
        _text: column of the text.
    """

    requests: tuple[str, ...]
    _audio: str = 'audio'
    _text: str = 'text'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        audio, answer = column(raw_sample, self._audio), self.answer(raw_sample)
        question = user_with('audio', audio, request_for(answer, self.requests))
        return [*self.opening(), question, assistant(answer)], {'audio': audio}

    def answer(self, row: Row) -> str:
        """Returns the text to learn."""
        return text(row, self._text)


@register_template('AudioCaps')
class AudioCaps(AudioText):
    """Columns `audiocap_path`, `caption`."""

    requests: tuple[str, ...] = (
        'Describe what you hear.',
        'What is happening in this recording?',
        'Write a caption for this sound.',
        'What can be heard here? Answer in one sentence.',
    )
    _audio = 'audiocap_path'
    _text = 'caption'


@register_template('LibriSpeech')
class LibriSpeech(AudioText):
    """Columns `audio`, `text`: what is said."""

    requests: tuple[str, ...] = (
        'Transcribe the speech.',
        'What is said in this recording? Write it down word for word.',
        'Write down what the speaker says.',
        'Please turn this speech into text.',
    )


@register_template('AudioSet')
class AudioSet(AudioText):
    """Columns `audio`, `captions`: a text, or a list of texts that are learned as one line each."""

    requests: tuple[str, ...] = AudioCaps.requests

    def answer(self, row: Row) -> str:
        captions = column(row, 'captions')
        if not isinstance(captions, (list, tuple)):
            return text(row, 'captions')
        if not captions:
            raise SampleError("column 'captions' is an empty list.")
        return '\n'.join(as_text(caption, "an entry of column 'captions'") for caption in captions)


@register_template('OpenAQA')
class OpenAQA(MediaQuestion):
    """Columns `audio_id` (a path relative to `audio_folder`), `instruction`, `output`."""

    _kind = 'audio'
    _media = 'audio_id'
    _questions = ('instruction',)

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, 'output'))], meta
