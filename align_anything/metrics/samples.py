"""The answers of a model, as `generate` left them in a folder: read back, media decoded when they are looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import soundfile
from PIL import Image, ImageSequence

from align_anything.core.errors import DataError, SampleError
from align_anything.core.files import lines_of
from align_anything.core.types import MEDIA_KINDS, Audio, Conversation, MediaKind, Message, Video
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.media.writing import MILLISECONDS
from align_anything.models.rendering import without_beginning
from align_anything.rewards.answers import answer_of
from align_anything.rewards.base import Completion

FILE = 'generations.jsonl'
KINDS: Mapping[str, MediaKind] = {'.png': 'image', '.wav': 'audio', '.apng': 'video'}
"""The kind of the first file of each medium, by its suffix, see `datasets.media.writing.files_of`."""
REFERENCE = 'reference_answer'
Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A response to a prompt.

    Attributes:
        folder: that paths of generated media start from.
        record: the line of the prompt in `generations.jsonl`.
        number: of the response.
    """

    folder: Path
    record: Record
    number: int

    @property
    def row(self) -> int:
        """The number of the prompt in its data."""
        return self.record['row']

    @property
    def source(self) -> str:
        """The row that the prompt came from."""
        return self.record['source']

    @property
    def dataset(self) -> str:
        """The data that it came from."""
        return self.source.rpartition(':')[0] or self.source

    @property
    def response(self) -> Record:
        """What `generations.jsonl` says of the response."""
        return self.record['responses'][self.number]

    @property
    def text(self) -> str:
        """Text of the whole answer, what was prefilled among it."""
        return self.response.get('prefill', '') + self.response['text']

    @property
    def answer(self) -> str:
        """The answer that the text comes to, thoughts left out, see `rewards.answers`."""
        return answer_of(self.text)

    @property
    def asked(self) -> list[Message]:
        """The prompt as messages in Hugging Face chat form; media are paths."""
        return self.record['messages']

    @property
    def prompt(self) -> str:
        """What tells the prompts of a run from each other, and is the same for the same row in another run."""
        return json.dumps([self.row, self.asked], sort_keys=True)

    @property
    def meta(self) -> Mapping[str, Any]:
        """The row's meta, the golden answer as `ground_truth`."""
        golden = {'ground_truth': self.record[REFERENCE]} if REFERENCE in self.record else {}
        return {**self.record.get('meta', {}), **golden}

    @property
    def files(self) -> list[tuple[MediaKind, Path]]:
        """The generated media that are decoded: the kind and the file without loss of each."""
        found, stems = [], set()
        for name in self.response.get('media', []):
            stem, dot, suffix = name.rpartition('.')
            if stem not in stems and f'{dot}{suffix}' in KINDS:
                found.append((KINDS[f'{dot}{suffix}'], self.folder / name))
            stems.add(stem)
        return found

    def references(self, column: str | None = None) -> list[str]:
        """Returns the golden answers: of a `column` of the row's meta, of None its reference answer.

        A column may hold a text, a number, a list of these, or a list of records with an `answer`, as VQA has them.
        Raises DataError where there is none.
        """
        value = self.record.get(REFERENCE) if column is None else self.meta.get(column)
        found = texts_in(value)
        if not found:
            where = 'reference answer' if column is None else f"answer in meta['{column}']"
            raise DataError(
                f'{self.source} has no {where}: use a template that gives one, such as Prompts with a column answer'
                f'{"" if column is None else " and the option keep_columns"}, or a metric that needs none.'
            )
        return found

    def conversation(self) -> Conversation:
        """Returns the prompt with its media decoded, of an episode with all turns before its last answer.

        Raises SampleError for media that cannot be read any more.
        """
        folders = dict.fromkeys(MEDIA_KINDS, str(self.folder))
        turns = self.response.get('turns', [])
        answers = [number for number, turn in enumerate(turns) if turn['role'] == 'assistant']
        written = bind_media([*self.asked, *turns[: max(answers, default=0)]], {}, folders, needs_reply=False)
        return without_beginning(decode_conversations([written])[0])

    def media(self, kind: MediaKind) -> list[Any]:
        """Returns the generated media of a kind, decoded."""
        return [_read(kind, path) for own, path in self.files if own == kind]

    def parts(self) -> list[dict[str, Any]]:
        """Returns the content of the response, its media decoded, as it stands in a message; text stands first."""
        text = self.response['text']
        shown = [{'type': kind, kind: _read(kind, path)} for kind, path in self.files]
        return [*([{'type': 'text', 'text': text}] if text else []), *shown]

    def completion(self) -> Completion:
        """Returns the response as rewards are given it, media decoded."""
        response = self.response
        return Completion(
            conversation=self.conversation(),
            message={'role': 'assistant', 'content': self.parts()},
            meta=self.meta,
            length=response.get('units', len(response['text'])),
            finished=response['finish_reason'] == 'stop',
            source=self.source,
            prefill=response.get('prefill', ''),
        )


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """The responses of a run, in the order of its rows.

    Attributes:
        folder: of the run.
        items: the responses.
    """

    folder: Path
    items: Sequence[Sample] = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        found = self.items[index]
        return Samples(self.folder, found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @cached_property
    def by_prompt(self) -> Mapping[str, list[Sample]]:
        """The responses to each prompt, by what the prompt says: its messages and its row."""
        found: dict[str, list[Sample]] = {}
        for sample in self.items:
            found.setdefault(sample.prompt, []).append(sample)
        return found


def read_samples(folder: str | Path) -> Samples:
    """Reads the responses in the output folder of `generate` or `evaluate`.

    Raises DataError where there are none, or the file is no such file.
    """
    folder = Path(folder)
    file = folder / FILE
    if not file.is_file():
        raise DataError(f'{folder} has no {FILE}: it is no output_dir of align-anything generate or evaluate.')
    try:
        records = [json.loads(line) for line in lines_of(file.read_text(encoding='utf-8'))]
        items = [Sample(folder, record, number) for record in records for number in range(len(record['responses']))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is damaged ({type(error).__name__}: {error}); generate anew.') from error
    if not items:
        raise DataError(f'{file} holds no response.')
    return Samples(folder, items)


def texts_in(value: Any) -> list[str]:
    """Returns the texts of a value of a row: of a text, a number, a list of them, records with an `answer`, parts."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, (str, int, float)):
        return [str(value)] if str(value).strip() else []
    if not isinstance(value, list):
        return []
    if value and all(isinstance(part, dict) and 'type' in part for part in value):
        return texts_in(''.join(part['text'] for part in value if part['type'] == 'text'))
    return [text for item in value for text in texts_in(item.get('answer') if isinstance(item, dict) else item)]


def _read(kind: MediaKind, path: Path) -> Any:
    """A generated medium as it was generated: decoding would thin out clips, and refuse what a model cut short."""
    try:
        return READERS[kind](path)
    except (OSError, RuntimeError, ValueError) as error:
        raise SampleError(f'the generated {kind} {path} cannot be read: {error}') from error


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert('RGB')


def _audio(path: Path) -> Audio:
    samples, rate = soundfile.read(path, dtype='float32')
    return Audio(samples, rate)


def _video(path: Path) -> Video:
    frames, lengths = [], []
    with Image.open(path) as animation:
        for frame in ImageSequence.Iterator(animation):
            frames.append(np.asarray(frame.convert('RGB')))
            # Frames that are all the same were written as one, which says nothing of its time.
            lengths.append(frame.info.get('duration', MILLISECONDS) / MILLISECONDS)
    ends = np.cumsum(lengths)
    sound = path.with_suffix('.wav')
    fps = len(frames) / max(float(ends[-1]), 1 / MILLISECONDS)
    return Video(np.stack(frames), ends - lengths, fps, _audio(sound) if sound.is_file() else None)


READERS = {'image': _image, 'audio': _audio, 'video': _video}
