"""Decoding audio clips: any source, one channel, at the rate asked for."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import pytest

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio
from align_anything.datasets.media import decode, decode_conversations, make_media
from tests.datasets.clips import clip, sound, tone

SECOND = tone(1.0)


def audio_of(source: Any, **options: Any) -> Audio:
    return decode(make_media('audio', source, options=options))


def pitch(audio: Audio) -> float:
    """The strongest frequency, in hertz."""
    spectrum = numpy.abs(numpy.fft.rfft(audio.samples * numpy.hanning(len(audio.samples))))
    return float(spectrum.argmax()) * audio.rate / len(audio.samples)


def test_every_source_gives_the_same_audio(tmp_path: Path) -> None:
    content = sound(SECOND, subtype='FLOAT')
    path = tmp_path / 'tone.wav'
    path.write_bytes(content)
    sources = [
        str(path),
        path,
        f'file://{path}',
        content,
        {'bytes': content, 'path': None},
        {'bytes': None, 'path': str(path)},
        'data:audio/wav;base64,' + base64.b64encode(content).decode(),
        {'array': SECOND, 'sampling_rate': 16000},
        {'array': SECOND.tolist(), 'sampling_rate': 16000, 'path': 'gone.wav'},
        {'array': SECOND.astype(numpy.float64), 'sampling_rate': 16000.0, 'path': None},
        {'array': numpy.stack([SECOND, SECOND]), 'sampling_rate': 16000},
        {'array': numpy.stack([SECOND, SECOND], axis=1), 'sampling_rate': 16000},
        Audio(SECOND, 16000),
    ]
    for source in sources:
        audio = audio_of(source)
        assert (audio.rate, audio.samples.dtype, audio.samples.shape) == (16000, numpy.float32, (16000,))
        numpy.testing.assert_allclose(audio.samples, SECOND, atol=1e-6)
    relative = decode(make_media('audio', 'tone.wav', str(tmp_path)))
    numpy.testing.assert_array_equal(relative.samples, SECOND)
    with pytest.raises(SampleError, match='has no rate'):
        audio_of(SECOND)
    assert len(audio_of(SECOND, sampling_rate=16000).samples) == 16000


@pytest.mark.parametrize(
    ('kind', 'subtype'),
    [('WAV', 'PCM_16'), ('WAV', 'PCM_24'), ('WAV', 'PCM_U8'), ('WAV', 'IMA_ADPCM'), ('WAV', 'ULAW'), ('FLAC', None)]
    + [('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', None), ('AIFF', None)],
)
def test_formats(kind: str, subtype: str | None) -> None:
    audio = audio_of(sound(SECOND, kind=kind, subtype=subtype))
    assert abs(len(audio.samples) - 16000) <= 1200
    assert abs(pitch(audio) - 440) < 2
    assert 0.4 < numpy.abs(audio.samples[2000:14000]).max() < 0.65, 'away from the ends, where codecs ring'


def test_the_suffix_of_a_file_does_not_matter(tmp_path: Path) -> None:
    for name in ('tone.wav', 'tone.raw', 'tone.txt', 'tone'):
        (tmp_path / name).write_bytes(sound(SECOND, kind='FLAC'))
        assert len(audio_of(tmp_path / name).samples) == 16000


def test_integers_are_at_full_range() -> None:
    for dtype, half, top in ((numpy.int16, 0, 32767), (numpy.int32, 0, 2**31 - 1), (numpy.uint8, 128, 127)):
        array = (half + top * numpy.sign(SECOND.astype(float))).astype(dtype)
        samples = audio_of({'array': array, 'sampling_rate': 16000}).samples
        assert abs(samples.max() - 1) < 0.01 and abs(samples.min() + 1) < 0.01, dtype


def test_channels_are_averaged() -> None:
    left, right = SECOND, tone(1.0, hertz=880)
    audio = audio_of(sound(numpy.stack([left, right], axis=1), subtype='FLOAT'))
    numpy.testing.assert_allclose(audio.samples, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize('rate', [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_the_pitch_and_the_length(rate: int) -> None:
    audio = audio_of(sound(numpy.stack([tone(1.0, rate)] * 2, axis=1), rate, subtype='FLOAT'), rate=16000)
    assert audio.rate == 16000 and abs(len(audio.samples) - 16000) <= 1
    assert abs(pitch(audio) - 440) < 1
    # Away from the ends it is the very tone that was never at another rate.
    numpy.testing.assert_allclose(audio.samples[1000:15000], SECOND[1000:15000], atol=2e-3)


def test_resampling_filters_what_the_new_rate_cannot_hold() -> None:
    # 10 kHz lies above half of 16 kHz: without a filter it would come back as a tone of 6 kHz.
    audio = audio_of({'array': tone(1.0, 48000, 10_000), 'sampling_rate': 48000}, rate=16000)
    assert numpy.abs(audio.samples[1000:15000]).max() < 1e-3


def test_long_audio_is_truncated_or_split() -> None:
    long = numpy.concatenate([tone(1.0, hertz=hertz) for hertz in (300, 600, 900)] + [tone(0.05)])
    cut = audio_of(sound(long, subtype='FLOAT'), max_seconds=1.5)
    numpy.testing.assert_array_equal(cut.samples, long[:24000])
    assert len(audio_of({'array': long, 'sampling_rate': 16000}, max_seconds=0.5, rate=8000).samples) == 4000
    assert len(audio_of(sound(long), max_seconds=10).samples) == len(long)

    media = make_media('audio', sound(long, subtype='FLOAT'), options={'max_seconds': 1.0, 'long_audio': 'split'})
    turn = {'role': 'user', 'content': [{'type': 'audio', 'audio': media}, {'type': 'text', 'text': 'What?'}]}
    ((decoded,),) = decode_conversations([[turn]])
    *pieces, text = decoded['content']
    # The last 0.05 s are too short to be an audio clip of their own.
    assert [round(pitch(part['audio'])) for part in pieces] == [300, 600, 900]
    assert text == {'type': 'text', 'text': 'What?'}


def test_the_audio_of_a_video_and_of_m4a() -> None:
    for content in (clip([0] * 10, audio=SECOND), clip([0] * 10, 'mov', audio=SECOND)):
        audio = audio_of(content, rate=16000)
        assert abs(len(audio.samples) - 16000) < 1100 and abs(pitch(audio) - 440) < 2
    assert len(audio_of(clip([0] * 10, audio=SECOND), rate=16000, max_seconds=0.5).samples) == 8000


def nan_at(index: int) -> numpy.ndarray:
    samples = SECOND.copy()
    samples[index] = numpy.nan
    return samples


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (sound(tone(0.01)), 'is too short: 0.010 s'),
        ({'array': [], 'sampling_rate': 16000}, 'is too short: 0.000 s'),
        ({'array': nan_at(7), 'sampling_rate': 16000}, 'not finite numbers'),
        (sound(nan_at(7), subtype='FLOAT'), 'not finite numbers'),
        ({'array': SECOND * 20000, 'sampling_rate': 16000}, 'full scale is 1'),
        ({'array': SECOND, 'sampling_rate': 0}, 'a rate of 0'),
        ({'array': SECOND}, 'has no rate'),
        ({'array': ['a'] * 9999, 'sampling_rate': 16000}, 'is no audio'),
        ({'array': numpy.zeros((2, 2, 2)), 'sampling_rate': 16000}, 'is no audio'),
        ({'array': None, 'sampling_rate': 16000}, 'nothing that audio can be made from'),
        (3, 'nothing that audio can be made from'),
        (clip([0] * 3), 'has no audio track'),
        (b'not a sound', 'no audio of a known format'),
        ('data:audio/wav;base64,', 'is empty (0 bytes)'),
        ({'bytes': b'', 'path': 'a.wav'}, "audio 'a.wav' is empty"),
        ({'bytes': None, 'path': None}, 'neither bytes nor path'),
    ],
)
def test_bad_sources_say_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        audio_of(source)
    assert message in str(caught.value)


@pytest.mark.parametrize('kind', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_truncated_audio_is_noticed(kind: str) -> None:
    content = sound(SECOND, kind=kind)
    with pytest.raises(SampleError):
        audio_of(content[: len(content) // 2])


def test_a_stream_whose_length_nobody_wrote_is_read() -> None:
    content = bytearray(sound(SECOND))
    content[4:8] = b'\xff\xff\xff\xff'
    content[40:44] = b'\xff\xff\xff\xff'
    assert content[36:40] == b'data'
    assert len(audio_of(bytes(content)).samples) == 16000


def test_hours_need_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('align_anything.datasets.media.audio.MAX_SECONDS', 2)
    with pytest.raises(SampleError, match='set data_cfgs.max_audio_seconds'):
        audio_of(sound(tone(5.0)))
    assert len(audio_of(io.BytesIO(sound(tone(5.0))).getvalue(), max_seconds=1).samples) == 16000
