"""Decoded media as the arguments that transformers' processors take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, CodedMedia, Video
from align_anything.models import structure

REST_SECONDS = 0.1
"""By so much an audio clip may outlast a processor's window; the rest is dropped."""


def media_arguments(processor: Any, media: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Returns the arguments of a processor's call for the media of one sample, by kind.

    Raises SampleError when an audio clip does not have the processor's rate, is empty or longer than what the processor
    takes, a video has no frames, or a medium is there as codes only.
    """
    coded = sorted(kind for kind, items in media.items() if any(isinstance(item, CodedMedia) for item in items))
    if coded:
        raise SampleError(
            f'there are codes of an {" and an ".join(coded)} alone, and this model reads the media themselves'
        )
    arguments: dict[str, Any] = {}
    if 'image' in media:
        arguments['images'] = [media['image']]
    if 'video' in media:
        # Frames were picked while decoding; picking once more would lose some.
        arguments |= {
            'videos': [[_frames(video) for video in media['video']]],
            'video_metadata': [video_metadata(video) for video in media['video']],
            'do_sample_frames': False,
        }
    if 'audio' in media:
        rate = structure.audio_rate(processor)
        # Audio is the one kind that processors want flat.
        window = structure.audio_window(processor)
        arguments |= {'audio': [_samples(audio, rate, window) for audio in media['audio']], 'sampling_rate': rate}
    return arguments


def sampled_rate(video: Video) -> float:
    """Returns how many of the picked frames stand for one second."""
    times = np.asarray(video.timestamps)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else float(video.fps)


def video_metadata(video: Video) -> Any:
    """Returns transformers' description of a video: which of its frames were picked, and at which rate it plays."""
    from transformers.video_utils import VideoMetadata

    number, fps = len(video.frames), float(video.fps)
    duration = number / sampled_rate(video)
    return VideoMetadata(
        total_num_frames=max(round(duration * fps), 1),
        fps=fps,
        width=int(video.frames.shape[2]),
        height=int(video.frames.shape[1]),
        duration=duration,
        frames_indices=[round(float(time) * fps) for time in video.timestamps],
    )


def _frames(video: Video) -> Any:
    if not len(video.frames):
        raise SampleError('the video has no frames')
    return video.frames


def _samples(audio: Audio, rate: int, window: int | None) -> Any:
    if audio.rate != rate:
        raise SampleError(f'the audio has {audio.rate} samples a second, this model takes {rate}: resample it')
    if not len(audio.samples):
        raise SampleError('the audio is empty')
    if window is not None and len(audio.samples) > window + REST_SECONDS * rate:
        seconds = window / rate
        raise SampleError(
            f'the audio lasts {len(audio.samples) / rate:.1f} s, but this model hears {seconds:g} s at once and its '
            f'processor drops the rest: set data_cfgs.max_audio_seconds: {seconds:g}, and long_audio to cut or split'
        )
    # Encoders of files pad the last block: a rest too short to be an audio clip may go.
    return audio.samples[:window]
