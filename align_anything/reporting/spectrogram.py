"""A sound as a picture."""

from __future__ import annotations

import numpy
from PIL import Image

from align_anything.core.types import Audio

WINDOW, HOP = 512, 128
DECIBELS = 80.0
"""How far below the loudest a sound is dark."""
COLOURS = ((0, 0, 0), (60, 15, 110), (190, 55, 85), (250, 150, 30), (250, 255, 165))
"""From silence to the loudest."""


def spectrogram(audio: Audio, size: tuple[int, int] = (512, 256)) -> Image.Image:
    """Returns the loudness by time, from left to right, and frequency, from 0 below to half the rate on top.

    By windows of 512 samples (Hann), in decibels below the loudest; `size` are columns and rows. Silence is dark.
    """
    samples = numpy.asarray(audio.samples, dtype=numpy.float64)
    samples = numpy.pad(samples, (0, max(WINDOW - len(samples), 0)))
    starts = range(0, len(samples) - WINDOW + 1, HOP)
    windows = numpy.stack([samples[start : start + WINDOW] for start in starts]) * numpy.hanning(WINDOW)
    power = numpy.abs(numpy.fft.rfft(windows)).T ** 2
    loudest = power.max()
    if loudest > 0:
        below = 10 * numpy.log10(numpy.maximum(power / loudest, 10 ** (-DECIBELS / 10)))
        share = 1 + below / DECIBELS
    else:
        share = numpy.zeros_like(power)
    bounds = numpy.linspace(0, 1, len(COLOURS))
    channels = [numpy.interp(share[::-1], bounds, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    picture = Image.fromarray(numpy.stack(channels, -1).round().astype(numpy.uint8))
    return picture.resize(size, Image.Resampling.BILINEAR)
