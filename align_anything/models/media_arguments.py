"""Decoded media as the arguments that transformers' processors take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, Video
from align_anything.models import structure

REST_SECONDS = 0.1
"""By so much an audio clip may outlast a processor's window; the rest is left away."""


def media_arguments(processor: Any, media: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Returns the arguments of a processor's call for the media of one sample, by kind.

    Raises SampleError when an audio clip does not have the processor's rate, is empty or longer than what the processor
    takes, or a video has no frames.
    """
    arguments: dict[str, Any] = {}
    if 'image' in media:
        arguments['images'] = [media['image']]
    if 'video' in media:
        # Frames were picked while decoding; picking once more would lose some.
        arguments |= {
            'videos': [[_frames(clip) for clip in media['video']]],
            'video_metadata': [video_metadata(clip) for clip in media['video']],
            'do_sample_frames': False,
        }
    if 'audio' in media:
        rate = structure.audio_rate(processor)
        # Audio is the one kind that processors want flat.
        window = structure.audio_window(processor)
        arguments |= {'audio': [_samples(sound, rate, window) for sound in media['audio']], 'sampling_rate': rate}
    return arguments


def sampled_rate(clip: Video) -> float:
    """Returns how many of the picked frames stand for one second."""
    times = np.asarray(clip.timestamps)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else float(clip.fps)


def video_metadata(clip: Video) -> Any:
    """Returns transformers' description of a video: which of its frames were picked, and at which rate it plays."""
    from transformers.video_utils import VideoMetadata

    number, fps = len(clip.frames), float(clip.fps)
    duration = number / sampled_rate(clip)
    return VideoMetadata(
        total_num_frames=max(round(duration * fps), 1),
        fps=fps,
        width=int(clip.frames.shape[2]),
        height=int(clip.frames.shape[1]),
        duration=duration,
        frames_indices=[round(float(time) * fps) for time in clip.timestamps],
    )


def _frames(clip: Video) -> Any:
    if not len(clip.frames):
        raise SampleError('the clip has no frames')
    return clip.frames


def _samples(sound: Audio, rate: int, window: int | None) -> Any:
    if sound.rate != rate:
        raise SampleError(f'the sound has {sound.rate} samples a second, this model takes {rate}: resample it')
    if not len(sound.samples):
        raise SampleError('the sound is empty')
    if window is not None and len(sound.samples) > window + REST_SECONDS * rate:
        seconds = window / rate
        raise SampleError(
            f'the sound lasts {len(sound.samples) / rate:.1f} s, but this model hears {seconds:g} s at once and its '
            f'processor drops the rest: set data_cfgs.max_audio_seconds: {seconds:g}, and long_audio to cut or split'
        )
    # Encoders of files pad the last block: a rest too short to be an audio clip may go.
    return sound.samples[:window]
