"""Decoded media as the bytes of files, and as data URIs: the way back."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy

from align_anything.core.types import Audio, MediaKind, Video

IMAGE_TYPE, AUDIO_TYPE = 'image/png', 'audio/wav'
MILLISECONDS = 1000
FULL_SCALE = 32767
QUALITY = {'libx264': {'qp': '20'}, 'mpeg4': {'qmin': '3', 'qmax': '3'}}
"""What encoders of videos are told: a fixed quantiser, at which hardly anything is seen to be lost."""
INTEGERS, FLOATS = 1, 3
"""The numbers that WAV files have for them."""


def png(image: Any) -> bytes:
    """Returns a PIL image as a PNG file, which loses nothing."""
    file = io.BytesIO()
    image.save(file, format='PNG')
    return file.getvalue()


def wav(audio: Audio, *, rounded: bool = False) -> bytes:
    """Returns audio as a WAV file, which loses nothing; or clipped and `rounded` to 16 bits, half the size.

    Not by libsndfile, which puts the time of day into files of floats: the same audio would not be the same file.
    """
    samples = numpy.clip(audio.samples, -1, 1) * FULL_SCALE if rounded else audio.samples
    data = samples.astype('<i2' if rounded else '<f4').tobytes()
    width = 2 if rounded else 4
    kind = struct.pack('<HHIIHH', INTEGERS if rounded else FLOATS, 1, audio.rate, audio.rate * width, width, 8 * width)
    chunks = [(b'fmt ', kind), *([] if rounded else [(b'fact', struct.pack('<I', len(samples)))]), (b'data', data)]
    content = b'WAVE' + b''.join(name + struct.pack('<I', len(chunk)) + chunk for name, chunk in chunks)
    return b'RIFF' + struct.pack('<I', len(content)) + content


def animation(video: Video) -> bytes:
    """Returns the frames of a video as an animated PNG file, which loses nothing; each is shown until the next one."""
    return _animated(video, 'PNG')


def gif(video: Video) -> bytes:
    """Returns the frames of a video as a GIF file, of 256 colours a frame, which everything shows, again and again."""
    return _animated(video, 'GIF', loop=0)


def mp4(video: Video) -> bytes:
    """Returns the frames of a video as an MP4 file, each at its time, which players and browsers show; without sound.

    H.264 where FFmpeg has an encoder of it, else MPEG-4. Frames with an odd side get their last row or column twice.
    """
    import av

    height, width = (side + side % 2 for side in video.frames.shape[1:3])
    file = io.BytesIO()
    with av.open(file, 'w', format='mp4') as container:
        codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
        stream = container.add_stream(codec, rate=Fraction(video.fps).limit_denominator(MILLISECONDS))
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.codec_context.time_base = Fraction(1, MILLISECONDS)
        # Even with one thread, x264 chooses other quantisers for the same frames now and then.
        stream.codec_context.thread_count = 1
        stream.options = QUALITY[codec]
        for pixels, time in zip(video.frames, video.timestamps, strict=True):
            sides = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(numpy.pad(pixels, sides, mode='edge'), format='rgb24')
            frame.pts, frame.time_base = round(MILLISECONDS * float(time)), Fraction(1, MILLISECONDS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _animated(video: Video, form: str, **options: int) -> bytes:
    from PIL import Image

    first, *others = [Image.fromarray(frame) for frame in video.frames]
    times = [float(time) for time in video.timestamps]
    lengths = [round(MILLISECONDS * (later - time)) for time, later in zip(times, times[1:], strict=False)]
    lengths.append(lengths[-1] if lengths else round(MILLISECONDS / video.fps))
    file = io.BytesIO()
    first.save(file, format=form, save_all=True, append_images=others, duration=lengths, **options)
    return file.getvalue()


def data_uri(content_type: str, content: bytes) -> str:
    """Returns the content of a file as a data URI."""
    return f'data:{content_type};base64,{base64.b64encode(content).decode()}'


def files_of(kind: MediaKind, medium: Any) -> list[tuple[str, bytes]]:
    """Returns a decoded medium as files with their suffixes, the first without loss.

    A video is an animated PNG, an MP4, and its sound if it has any.
    """
    return FILES[kind](medium)


def _of_video(video: Video) -> list[tuple[str, bytes]]:
    sound = [] if video.audio is None else _of_audio(video.audio)
    return [('.apng', animation(video)), ('.mp4', mp4(video)), *sound]


def _of_audio(audio: Audio) -> list[tuple[str, bytes]]:
    return [('.wav', wav(audio))]


FILES: dict[MediaKind, Callable[[Any], list[tuple[str, bytes]]]] = {
    'image': lambda image: [('.png', png(image))],
    'video': _of_video,
    'audio': _of_audio,
}
