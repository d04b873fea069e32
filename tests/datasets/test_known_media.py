"""Media that are known from their files are not decoded; what anybody looks at, and what is not known, is."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.core.contents import Known, content_of, native_size
from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Media
from align_anything.datasets import code
from align_anything.datasets.media import KnownMedia, decode, decode_conversations, decoding, make_media
from align_anything.datasets.media.known import known_store
from tests.datasets.clips import clip, sound, tone


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that were decoded, in order."""
    log: list[str] = []

    def logged(kind: str, decoder: Callable[[Media], Any]) -> Callable[[Media], Any]:
        return lambda media: [log.append(kind), decoder(media)][1]

    for kind, decoder in list(decoding.DECODERS.items()):
        monkeypatch.setitem(decoding.DECODERS, kind, logged(kind, decoder))
    return log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture, a clip and a sound."""
    folder = tmp_path / 'media'
    folder.mkdir()
    (folder / 'a.mp4').write_bytes(clip([number * 10 for number in range(8)]))
    (folder / 'a.wav').write_bytes(sound(tone(0.5)))
    draw(folder / 'a.png', 'red')
    return folder


def draw(path: Path, colour: str) -> None:
    Image.new('RGB', (12, 8), colour).save(path)


def said(*media: Media, role: str = 'assistant') -> Conversation:
    return [{'role': role, 'content': [{'type': item.kind, item.kind: item} for item in media]}]


def opened(folder: Path, unread: Callable[[str, str], bool] = lambda role, kind: True) -> KnownMedia:
    return KnownMedia(known_store(folder / 'kept', 'a_cfgs.folder'), unread).noting()


def seen(known: KnownMedia, *conversations: Conversation) -> list[list[Any]]:
    """What becomes of the media of each conversation of a row; what is noted of them is stored."""
    lookup = known.lookup(conversations)
    found = decode_conversations(conversations, lookup=lookup)
    known.store.put_all(lookup.noted)
    known.store.refresh()
    return [[part[part['type']] for message in turns for part in message['content']] for turns in found]


def test_the_second_look_is_into_the_store(folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    media = [
        make_media(kind, str(folder / name))
        for kind, name in (('image', 'a.png'), ('video', 'a.mp4'), ('audio', 'a.wav'))
    ]
    known = opened(tmp_path)
    ((*first,),) = seen(known, said(*media))
    assert len(decoded) == 3 and not any(type(medium) is Known for medium in first)
    for again in (known, opened(tmp_path)):
        ((*second,),) = seen(again, said(*media))
        assert [type(medium) for medium in second] == [Known] * 3 and len(decoded) == 3
        assert list(map(content_of, second)) == list(map(content_of, first))
        assert list(map(native_size, second)) == list(map(native_size, first)) == [(8, 12), (4, 48, 64), (8000,)]


def test_bytes_count_and_neither_names_nor_times(folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    known, path = opened(tmp_path), folder / 'a.png'

    def look(source: Any, **options: Any) -> bool:
        before = len(decoded)
        ((medium,),) = seen(known, said(make_media('image', source, options=options)))
        assert (type(medium) is Known) == (len(decoded) == before)
        return type(medium) is Known

    assert not look(str(path))
    os.utime(path, (1, 1))
    assert look(str(path))
    moved = folder.rename(tmp_path / 'moved') / 'a.png'
    assert look(str(moved))
    times = moved.stat()
    size = times.st_size
    draw(moved, 'blue')
    content = moved.read_bytes()
    moved.write_bytes(content + b'\0' * (size - len(content)))
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not look(str(moved)) and look(str(moved))
    # Other options make another picture.
    assert not look(str(moved), max_image_pixels=24)
    # The bytes in a row, of a feature and in a text.
    for source in (
        content,
        {'bytes': content, 'path': 'x.png'},
        f'data:image/png;base64,{base64.b64encode(content).decode()}',
    ):
        look(source)
        assert look(source)


def test_what_has_no_bytes_at_hand_is_decoded(folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    frames = tmp_path / 'frames'
    frames.mkdir()
    draw(frames / '0.png', 'red')
    pixels = numpy.zeros((4, 4, 3), numpy.uint8)
    split = {'max_seconds': 0.2, 'long_audio': 'split'}
    media = [
        make_media('image', pixels),
        make_media('image', Image.new('RGB', (4, 4))),
        make_media('video', str(frames)),
        make_media('video', [str(frames / '0.png')]),
        make_media('audio', {'array': tone(0.5), 'sampling_rate': 16000}),
        make_media('audio', str(folder / 'a.wav'), options=split),
        make_media('image', {'embedding': [0.5, 1.0]}),
        make_media('image', {'codes': [[[1, 2]]]}),
    ]
    known = opened(tmp_path)
    counts = []
    for _ in range(2):
        ((*found,),) = seen(known, said(*media))
        # The sound is in three pieces.
        assert len(found) == len(media) + 2 and not any(type(medium) is Known for medium in found)
        counts.append(len(decoded))
    assert counts[1] == 2 * counts[0] > 0
    with pytest.raises(SampleError, match='does not exist'):
        seen(known, said(make_media('image', str(folder / 'gone.png'))))


def test_a_kind_that_is_read_anywhere_in_a_row_is_decoded_everywhere(folder: Path, tmp_path: Path) -> None:
    known = opened(tmp_path, lambda role, kind: role == 'assistant')
    image, video = make_media('image', str(folder / 'a.png')), make_media('video', str(folder / 'a.mp4'))
    row = [*said(image, role='user'), *said(image, video)]
    seen(known, row)
    ((shown, drawn, filmed),) = seen(known, row)
    assert shown is drawn and type(shown) is not Known and type(filmed) is Known
    ((alone,),) = seen(known, said(image))
    assert type(alone) is not Known, 'it was not looked up, and so not noted'


def test_the_same_media_are_the_same_as_when_they_are_decoded(folder: Path, tmp_path: Path) -> None:
    (folder / 'copy.png').write_bytes((folder / 'a.png').read_bytes())
    known = opened(tmp_path)
    for _ in range(2):
        one, other = (said(make_media('image', str(folder / 'a.png'))) for _ in range(2))
        third = said(make_media('image', str(folder / 'copy.png')))
        (first,), (second,), (copied,) = seen(known, one, other, third)
        assert first is second and copied is not first and content_of(copied) == content_of(first)
    assert type(first) is Known


def test_another_decoder_knows_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = said(make_media('image', str(folder / 'a.png')))
    seen(opened(tmp_path), row)
    with monkeypatch.context() as changed:
        changed.setattr(code, 'version', lambda name: '0.1')
        code.code_digest.cache_clear()
        ((medium,),) = seen(opened(tmp_path), row)
    code.code_digest.cache_clear()
    assert type(medium) is not Known
    ((medium,),) = seen(opened(tmp_path), row)
    assert type(medium) is Known


def test_an_image_that_was_opened_and_one_of_a_file_have_one_content(folder: Path) -> None:
    path = folder / 'a.png'
    one = decode(make_media('image', str(path)))
    assert content_of(one) == content_of(Image.open(io.BytesIO(path.read_bytes())).convert('RGB'))
