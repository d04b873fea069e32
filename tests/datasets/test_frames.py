"""Images that are frames of a file: by number, by time, all of a row in one pass, turned as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest

from align_anything.core.errors import SampleError
from align_anything.core.types import Media
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import MediaCache, decode, decode_conversations, frames, make_media, size_of
from align_anything.datasets.media.cache import lasting_key
from align_anything.datasets.media.writing import png
from tests.datasets.clips import clip, grey

LEVELS = [10 * number for number in range(20)]


@pytest.fixture
def video(tmp_path: Path) -> str:
    path = tmp_path / 'a.mp4'
    path.write_bytes(clip(LEVELS))
    return str(path)


def frame(path: str, **where: Any) -> Media:
    return make_media('image', {'video': path, **where})


def level(image: Any) -> int:
    return round(float(numpy.asarray(image).mean()) / 10) * 10


@pytest.mark.parametrize(('where', 'expected'), [({'frame': 0}, 0), ({'frame': 7}, 70), ({'frame': 19}, 190)])
def test_by_number(video: str, where: dict[str, Any], expected: int) -> None:
    assert level(decode(frame(video, **where))) == expected


@pytest.mark.parametrize(('time', 'expected'), [(0, 0), (0.7, 70), (0.74, 70), (0.66, 70), (1.9, 190)])
def test_by_time_is_the_nearest_frame(video: str, time: float, expected: int) -> None:
    assert level(decode(frame(video, time=time))) == expected


def test_a_clock_that_drifts_is_named_with_the_nearest_frame(video: str) -> None:
    with pytest.raises(
        SampleError, match=r'no frame within 0\.05 s of 2\.1000 s: the nearest is frame 19 at 1\.9000 s'
    ):
        decode(frame(video, time=2.1))
    with pytest.raises(SampleError, match=r'frame 7 at 0\.7000 s, 0\.0200 s earlier.*drifted apart'):
        decode(frame(video, time=0.72, tolerance=1e-4))
    assert level(decode(frame(video, time=2.1, tolerance=0.3))) == 190


@pytest.mark.parametrize(
    ('where', 'told'),
    [
        ({'frame': 20}, 'has 20 frames, 0 to 19, and no frame 20'),
        ({'frame': -1}, 'no frame -1'),
        ({}, 'a frame or a time, and one of them'),
        ({'frame': 1, 'time': 1}, 'a frame or a time, and one of them'),
        ({'frame': 'first'}, 'not a number'),
        ({'frame': 1, 'index': 1}, 'has index. Keys are: video, frame, time, tolerance'),
    ],
)
def test_what_is_no_frame_is_refused(video: str, where: dict[str, Any], told: str) -> None:
    with pytest.raises(SampleError, match=told):
        decode(frame(video, **where))


def test_missing_and_truncated_files_are_named(video: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"the video '.*b\.mp4' does not exist"):
        decode(frame(str(tmp_path / 'b.mp4'), frame=0))
    content = Path(video).read_bytes()
    (tmp_path / 'c.mp4').write_bytes(content[: len(content) // 2])
    with pytest.raises(SampleError, match=r'c\.mp4'):
        decode(frame(str(tmp_path / 'c.mp4'), frame=0))


def test_all_frames_of_a_row_are_read_in_one_pass_of_each_file(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = frames.frames_at
    monkeypatch.setattr(frames, 'frames_at', lambda path, *rest: opened.append(path) or read(path, *rest))
    shown = [3, 11, 3, 18]
    parts = [{'type': 'image', 'image': {'video': video, 'frame': number}} for number in shown]
    turns = [{'role': 'user', 'content': [part]} for part in parts]
    conversation = bind_media([*turns, {'role': 'assistant', 'content': 'Yes.'}], {})
    cache = MediaCache(2**20)
    (decoded,) = decode_conversations([conversation], cache)
    assert [level(message['content'][0]['image']) for message in decoded[:-1]] == [10 * number for number in shown]
    assert opened == [video]
    decode_conversations([conversation], cache)
    assert opened == [video]


def test_a_changed_file_is_another_frame(video: str) -> None:
    key = lasting_key(frame(video, frame=1))
    assert key == lasting_key(frame(video, frame=1)) != lasting_key(frame(video, frame=2))
    Path(video).write_bytes(clip(LEVELS[::-1]))
    assert lasting_key(frame(video, frame=1)) != key
    assert level(decode(frame(video, frame=0))) == 190


def test_relative_paths_start_where_videos_do(video: str) -> None:
    part = {'type': 'image', 'image': {'video': 'a.mp4', 'frame': 2}}
    turns = [{'role': 'user', 'content': [part]}, {'role': 'assistant', 'content': 'Yes.'}]
    bound = bind_media(turns, {}, {'image': '/elsewhere', 'video': str(Path(video).parent)})
    assert level(decode(bound[0]['content'][0]['image'])) == 20


def half(top: int, bottom: int) -> numpy.ndarray:
    """A picture that is brighter above or below, and at its left edge black."""
    picture = numpy.concatenate([grey(top, (64, 24)), grey(bottom, (64, 24))])
    picture[:, :16] = 0
    return picture


@pytest.fixture
def hdf5(tmp_path: Path) -> str:
    path = tmp_path / 'a.hdf5'
    pictures = numpy.stack([half(200, 50), half(210, 60)])
    with h5py.File(path, 'w') as file:
        file['obs/rgb'] = pictures
        encoded = [numpy.frombuffer(png(decode(Media('image', picture))), numpy.uint8) for picture in pictures]
        padded = numpy.zeros((2, max(map(len, encoded)) + 7), numpy.uint8)
        for row, content in zip(padded, encoded, strict=True):
            row[: len(content)] = content
        file['obs/encoded'] = padded
        file['obs/depth'] = numpy.zeros((2, 48, 64), numpy.float32)
    return str(path)


@pytest.mark.parametrize('name', ['obs/rgb', 'obs/encoded'])
def test_frames_of_arrays(hdf5: str, name: str) -> None:
    media = make_media('image', {'hdf5': hdf5, 'dataset': name, 'frame': 1})
    numpy.testing.assert_array_equal(numpy.asarray(decode(media)), half(210, 60))
    assert size_of(media) == (48, 64)


@pytest.mark.parametrize(
    ('name', 'number', 'told'),
    [
        ('obs/rgb', 2, 'has 2 frames, and no 2'),
        ('obs/none', 0, "no dataset 'obs/none'"),
        ('obs/depth', 0, 'no pictures'),
    ],
)
def test_wrong_arrays_are_named(hdf5: str, name: str, number: int, told: str) -> None:
    with pytest.raises(SampleError, match=told):
        decode(make_media('image', {'hdf5': hdf5, 'dataset': name, 'frame': number}))


@pytest.mark.parametrize(
    ('options', 'turned'),
    [
        ({'rotate': 180}, lambda picture: picture[::-1, ::-1]),
        ({'rotate': 90}, lambda picture: numpy.rot90(picture)),
        ({'flip': 'vertical'}, lambda picture: picture[::-1]),
        ({'flip': 'horizontal'}, lambda picture: picture[:, ::-1]),
        ({'rotate': 270, 'flip': 'horizontal'}, lambda picture: numpy.rot90(picture, 3)[:, ::-1]),
    ],
)
def test_pictures_are_turned_as_asked(hdf5: str, options: dict[str, Any], turned: Any) -> None:
    media = make_media('image', {'hdf5': hdf5, 'dataset': 'obs/rgb', 'frame': 0}, options=options)
    picture = numpy.asarray(decode(media))
    numpy.testing.assert_array_equal(picture, turned(half(200, 50)))
    assert size_of(media) == picture.shape[:2]


def test_size_and_wrong_turns(video: str) -> None:
    media = make_media('image', {'video': video, 'frame': 0}, options={'size': [12, 20]})
    assert decode(media).size == (20, 12) and size_of(media) == (12, 20)
    assert size_of(frame(video, frame=0)) == (48, 64)
    with pytest.raises(SampleError, match='turned by 90, 180 or 270'):
        decode(make_media('image', {'video': video, 'frame': 0}, options={'rotate': 45}))
    with pytest.raises(SampleError, match='flipped horizontal or vertical'):
        decode(make_media('image', {'video': video, 'frame': 0}, options={'flip': 'both'}))
