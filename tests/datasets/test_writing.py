"""What is written of decoded media is read back as it was."""

from __future__ import annotations

import io
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from align_anything.core.types import Audio, CodedMedia, Video, decoded_medium
from align_anything.datasets.media import decode, make_media
from align_anything.datasets.media.audio import at_rate
from align_anything.datasets.media.writing import animation, data_uri, files_of, mp4, png, wav
from tests.datasets.clips import tone

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
CLIP = Video(PIXELS, np.array([0.0, 0.5, 0.75, 2.0]), 4.0)
LOUD = Audio(3 * tone(0.2, 8000), 8000)


def test_images_and_audio_lose_nothing() -> None:
    assert np.array_equal(decode(make_media('image', png(Image.fromarray(PIXELS[0])))), PIXELS[0])
    for source in (wav(LOUD), data_uri('audio/wav', wav(LOUD))):
        sound = decode(make_media('audio', source))
        assert sound.rate == 8000 and np.array_equal(sound.samples, LOUD.samples), 'past full scale too'
    with soundfile.SoundFile(io.BytesIO(wav(LOUD))) as file:
        assert (file.format, file.subtype, file.channels, file.frames) == ('WAV', 'FLOAT', 1, len(LOUD.samples))
    rounded = decode(make_media('audio', wav(LOUD, rounded=True))).samples
    assert np.abs(rounded - np.clip(LOUD.samples, -1, 1)).max() < 1e-4


def test_each_frame_is_shown_at_its_time() -> None:
    again = replace(CLIP, frames=PIXELS[[0, 1, 1, 2]])
    for video in (CLIP, again):
        found = Image.open(io.BytesIO(animation(video)))
        shown, at = {}, 0.0
        for number in range(found.n_frames):
            found.seek(number)
            shown[at] = np.asarray(found.convert('RGB'))
            at += found.info['duration'] / 1000
        for time, frame in zip(video.timestamps, video.frames, strict=True):
            assert np.array_equal(shown[max(start for start in shown if start <= time)], frame)
        assert at == 2.0 + 1.25, 'the last one as long as the one before'
    read = decode(make_media('video', animation(CLIP)))
    assert np.array_equal(read.frames[-1], PIXELS[-1]) and read.timestamps[-1] == 2.0
    assert Image.open(io.BytesIO(animation(Video(PIXELS[:1], np.zeros(1), 4.0)))).size == (32, 24)


def test_a_video_is_written_with_its_sound() -> None:
    animated, (suffix, played) = files_of('video', CLIP)
    assert animated == ('.apng', animation(CLIP)) and suffix == '.mp4'
    with av.open(io.BytesIO(played)) as container:
        found = np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)])
    # Of noise, which loses most where colours are stored at half the size, the brightness is left.
    assert np.corrcoef(found.mean(3).ravel(), PIXELS.mean(3).ravel())[0, 1] > 0.8
    silent, _, sound = files_of('video', replace(CLIP, audio=LOUD))
    assert (silent, sound) == (animated, ('.wav', wav(LOUD)))
    assert files_of('audio', LOUD) == [('.wav', wav(LOUD))]
    assert files_of('image', Image.fromarray(PIXELS[0]))[0][0] == '.png'


@pytest.mark.parametrize('encoders', [None, {'mpeg4'}], ids=['own', 'without-x264'])
def test_an_mp4_is_played_at_its_times(encoders: set[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if encoders is not None:
        monkeypatch.setattr(av, 'codecs_available', encoders)
    shades = np.tile(np.array([40, 120, 200], np.uint8)[:, None, None, None], (1, 17, 31, 3))
    times = np.array([0.0, 0.5, 1.75])
    content = mp4(Video(shades, times, 2.0))
    with av.open(io.BytesIO(content)) as container:
        found = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == ('h264' if encoders is None else 'mpeg4')
    assert [(frame.width, frame.height) for frame in found] == [(32, 18)] * 3
    assert [frame.time for frame in found] == pytest.approx(times, abs=1e-3)
    assert (
        np.abs(
            np.stack([frame.to_ndarray(format='rgb24') for frame in found])[:, :17, :31] - shades.astype(float)
        ).max()
        < 8
    )


def test_a_part_without_a_medium_has_none() -> None:
    assert decoded_medium({'type': 'image'}) is None and decoded_medium({'type': 'audio', 'audio': LOUD}) is LOUD
    assert decoded_medium({'type': 'image', 'image': CodedMedia('image', np.zeros((1, 2, 2)))}) is None


def test_conversations_are_heard_at_a_rate() -> None:
    low = Audio(tone(0.5, 8000), 8000)
    kept = {'type': 'audio', 'audio': Audio(tone(0.5), 16000)}
    spoken = {'type': 'video', 'video': replace(CLIP, audio=low)}
    parts = [
        {'type': 'text', 'text': 'a'},
        {'type': 'audio', 'audio': low, 'codes': 7},
        {'type': 'audio'},
        kept,
        spoken,
    ]
    first = [{'role': 'user', 'content': parts, 'weight': 1.0}]
    found, again = at_rate([first, [*first, {'role': 'assistant', 'content': parts}]], 16000)
    assert found[0]['weight'] == 1.0 and found[0]['content'][0] == parts[0] and found[0]['content'][2] == parts[2]
    assert found[0]['content'][3]['audio'] is kept['audio']
    sound, video = found[0]['content'][1], found[0]['content'][4]['video']
    assert sound['codes'] == 7 and sound['audio'].rate == video.audio.rate == 16000
    assert sound['audio'].samples == pytest.approx(tone(0.5), abs=0.02)
    assert np.array_equal(video.frames, PIXELS)
    for turn in again:
        assert turn['content'][1]['audio'] is sound['audio'] and turn['content'][4]['video'] is video
    assert first[0]['content'][1]['audio'] is low, 'the given ones stay'
