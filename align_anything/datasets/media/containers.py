"""Opening videos with PyAV, and the audio tracks in them."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy

from align_anything.core.errors import SampleError
from align_anything.core.types import Media
from align_anything.datasets.media.sources import describe

FORMATS = (
    'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,gif,apng,h264,hevc,ivf,m4v,mxf,nut,'
    'wav,w64,mp3,flac,aac,ac3,amr,aiff,au,caf'
)
"""Only formats that hold their data themselves: a playlist could name any file or address."""


def open_container(source: str | bytes | bytearray, media: Media) -> Any:
    """Returns an open `av` container over a path or bytes. Raises `SampleError` when it is no known format."""
    import av

    # The prefix keeps FFmpeg from reading a path such as `concat:a|b` as an address.
    target = f'file:{source}' if isinstance(source, str) else io.BytesIO(source)
    try:
        return av.open(target, options={'format_whitelist': FORMATS})
    except av.error.FFmpegError as error:
        raise SampleError(f'{describe(media)} is damaged or no {media.kind} of a known format.') from error


def read_track(
    source: str | bytes | bytearray, media: Media, seconds: float, since: float | None = None
) -> tuple[numpy.ndarray, int]:
    """Returns the first audio track as samples `(samples, channels)` float32, and its rate.

    Args:
        seconds: how much of it is read.
        since: time of the container's clock at which it begins; silence is put before a track that begins later.
            None begins with the track.

    Raises:
        SampleError: there is no audio in it.
    """
    import av

    with open_container(source, media) as container:
        if not container.streams.audio:
            raise SampleError(f'{describe(media)} has no audio track.')
        stream = container.streams.audio[0]
        rate, planar = stream.rate, av.AudioResampler(format='fltp')
        blocks: list[numpy.ndarray] = []
        length, lead = 0, 0
        for frame in itertools.chain(container.decode(stream), [None]):
            if frame is not None and not blocks and since is not None and frame.time is not None:
                lead = round((frame.time - since) * rate)
            blocks += [converted.to_ndarray() for converted in planar.resample(frame)]
            length = sum(block.shape[1] for block in blocks)
            if length + lead >= seconds * rate:
                break
        if not length:
            raise SampleError(f'{describe(media)} has an audio track without any samples in it.')
    samples = numpy.concatenate(blocks, axis=1).T[max(0, -lead) :]
    silence = numpy.zeros((max(0, lead), samples.shape[1]), samples.dtype)
    return numpy.concatenate([silence, samples]), rate
