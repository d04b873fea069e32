"""Decoding audio clips: one channel, at the rate that the model's processor wants."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, Conversation, Media, decoded_medium
from align_anything.datasets.media.containers import read_track
from align_anything.datasets.media.sources import as_file, describe

MIN_SECONDS = 0.1
MAX_SECONDS = 2 * 3600
"""Longest audio clip that is read in full, half a gigabyte at 16 kHz."""
RATES = range(1000, 768_001)
LOUDEST = 8
"""Full scale is 1; lossy formats go a little beyond, but not to the 32768 of integers taken for floats."""
FORMATS = ('WAV', 'WAVEX', 'RF64', 'W64', 'FLAC', 'OGG', 'MP3', 'AIFF', 'AU', 'CAF')
NOT_FOR_LIBSNDFILE = (1, 4)
"""Its error codes for a format and for an encoding that it does not know."""


def decode_audio(media: Media) -> Audio:
    """Returns the audio of `media`, its channels mixed.

    Options: `rate` to resample to (by default the audio's own), `max_seconds` and `long_audio` (`cut` takes the
    beginning of a longer clip, `split` all of it, see `split_audio`), `sampling_rate` of a bare array.

    Raises:
        SampleError: nothing readable, ends early, shorter than `MIN_SECONDS`, longer than `MAX_SECONDS`, or with values
            that are no audio.
    """
    limit = media.options.get('max_seconds')
    if limit is None or media.options.get('long_audio') == 'split':
        limit = math.inf
    source = as_file(media)
    if isinstance(source, (str, bytes, bytearray)):
        samples, rate = _read(source, media, limit)
    else:
        samples, rate = _given(source, media)
        samples = samples[: math.ceil(limit * rate)] if limit < math.inf else samples
    return finish(samples, rate, media, limit)


def finish(samples: numpy.ndarray, rate: int, media: Media, limit: float) -> Audio:
    """Returns samples `(samples, channels)` checked, mixed and resampled. Raises as `decode_audio` does."""
    if rate not in RATES:
        raise SampleError(f'{describe(media)} has a rate of {rate} samples per second, which is no rate of audio.')
    if len(samples) < MIN_SECONDS * rate:
        raise SampleError(
            f'{describe(media)} is too short: {len(samples) / rate:.3f} s, and at least {MIN_SECONDS} s are needed.'
        )
    if len(samples) > MAX_SECONDS * rate:
        raise SampleError(
            f'{describe(media)} is longer than {MAX_SECONDS} s: cut it up, or set data_cfgs.max_audio_seconds.'
        )
    if not numpy.isfinite(samples).all():
        raise SampleError(f'{describe(media)} has samples that are not finite numbers.')
    loudest = float(numpy.abs(samples).max())
    if loudest > LOUDEST:
        raise SampleError(f'{describe(media)} has samples up to {loudest:.6g}; full scale is 1.')
    mixed = Audio(samples.mean(axis=1, dtype=numpy.float32), rate)
    audio = resampled(mixed, int(media.options.get('rate') or rate))
    kept = audio.samples[: int(limit * audio.rate)] if limit < math.inf else audio.samples
    return Audio(numpy.ascontiguousarray(kept, dtype=numpy.float32), audio.rate)


def resampled(audio: Audio, rate: int) -> Audio:
    """Returns the audio clip with `rate` samples per second; itself where it has them."""
    if audio.rate == rate:
        return audio
    import soxr

    return Audio(soxr.resample(audio.samples, audio.rate, rate, quality='HQ'), rate)


def at_rate(conversations: Sequence[Conversation], rate: int) -> list[Conversation]:
    """Returns decoded conversations with their audio clips, and the sound of their videos, at a rate.

    A clip that stands in several of them stays one clip.
    """
    made: dict[int, Any] = {}

    def part_of(part: dict[str, Any]) -> dict[str, Any]:
        kind, medium = part['type'], decoded_medium(part)
        if kind == 'audio' and medium is not None:
            return {**part, kind: made.setdefault(id(medium), resampled(medium, rate))}
        if kind == 'video' and medium is not None and medium.audio is not None:
            return {**part, kind: made.setdefault(id(medium), replace(medium, audio=resampled(medium.audio, rate)))}
        return part

    return [
        [{**message, 'content': [part_of(part) for part in message['content']]} for message in conversation]
        for conversation in conversations
    ]


def split_audio(audio: Audio, media: Media) -> list[Audio]:
    """Returns an audio clip in pieces of at most `max_seconds` where the options say `long_audio: split`, else whole.

    A last piece too short to be heard is left out.
    """
    seconds = media.options.get('max_seconds')
    if seconds is None or media.options.get('long_audio') != 'split':
        return [audio]
    step = int(seconds * audio.rate)
    pieces = [Audio(audio.samples[start : start + step], audio.rate) for start in range(0, len(audio.samples), step)]
    return [piece for piece in pieces if len(piece.samples) >= MIN_SECONDS * audio.rate]


def _read(source: str | bytes | bytearray, media: Media, limit: float) -> tuple[numpy.ndarray, int]:
    import soundfile

    try:
        with open(source, 'rb', buffering=0) if isinstance(source, str) else io.BytesIO(source) as file:
            missing = _missing_bytes(file)
            # Handed over by number: a file with a name is read as what its suffix claims.
            with soundfile.SoundFile(file.fileno() if isinstance(source, str) else file, closefd=False) as sound:
                if sound.format not in FORMATS:
                    raise SampleError(f'{describe(media)} is {sound.format}, none of the formats {", ".join(FORMATS)}.')
                wanted = int(min(sound.frames, math.ceil(min(limit, MAX_SECONDS + 1) * sound.samplerate)))
                samples = sound.read(wanted, dtype='float32', always_2d=True)
                rate = sound.samplerate
    except soundfile.LibsndfileError as error:
        if error.code not in NOT_FOR_LIBSNDFILE:
            raise SampleError(f'{describe(media)} is damaged or no audio of a known format.') from error
        return read_track(source, media, min(limit, MAX_SECONDS + 1))
    if len(samples) < wanted or missing:
        raise SampleError(f'{describe(media)} ends early: it is truncated or damaged.')
    return samples, rate


def _missing_bytes(file: Any) -> bool:
    """Tells whether a RIFF file is shorter than its header says; libsndfile reads what is left without a word."""
    header = file.read(8)
    actual = file.seek(0, io.SEEK_END)
    file.seek(0)
    declared = int.from_bytes(header[4:8], 'little') + 8
    # A stream's header is written before its length is known, with the largest numbers there are.
    return header[:4] == b'RIFF' and actual + 1024 < declared < 2**31 - 2**16


def _given(source: Any, media: Media) -> tuple[numpy.ndarray, int]:
    """Returns the samples `(samples, channels)` and the rate of an audio clip that is in memory."""
    if isinstance(source, Audio):
        return source.samples[:, None], source.rate
    rate = media.options.get('sampling_rate')
    if isinstance(source, Mapping):
        source, rate = source.get('array'), source.get('sampling_rate', rate)
    if not isinstance(source, (list, tuple, numpy.ndarray)):
        raise SampleError(f'{describe(media)} is nothing that audio can be made from.')
    if not isinstance(rate, (int, float)):
        raise SampleError(
            f"{describe(media)} has no rate: give {{'array': samples, 'sampling_rate': samples per second}}."
        )
    array = numpy.asarray(source)
    if array.dtype.kind not in 'iuf' or array.ndim not in (1, 2):
        raise SampleError(f'{describe(media)} of {array.dtype} and shape {array.shape} is no audio.')
    if array.dtype.kind in 'iu' and not isinstance(source, (list, tuple)):
        half = 2.0 ** (8 * array.dtype.itemsize - 1)
        array = array / half - (1 if array.dtype.kind == 'u' else 0)
    array = array[:, None] if array.ndim == 1 else array
    # There are always more samples than channels.
    return (array.T if array.shape[0] < array.shape[1] else array).astype(numpy.float32), int(rate)
