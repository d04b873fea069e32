"""Which frames of a video are taken, and how large they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy

FPS, MIN_FRAMES, MAX_FRAMES = 2.0, 4, 64
MAX_FRAME_PIXELS, MAX_VIDEO_PIXELS = 2**19, 2**25
TICK = 1e-3
"""Containers round times to milliseconds at worst."""


def pick(times: numpy.ndarray, duration: float, options: Mapping[str, Any]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns the numbers of the frames to take and their timestamps, both `(picked,)`.

    The video is cut into equal stretches of time, and what is shown at the beginning of each is taken. A frame that is
    held over several stretches is taken for each of them.

    Args:
        times: when each frame is first shown, seconds from the video's start, ascending, `(frames,)`.
        duration: of the video, in seconds.
        options: `num_frames`, or else `fps`, `min_frames` and `max_frames`; never more frames than there are.
    """
    number = options.get('num_frames')
    if number is None:
        asked = math.floor((duration + TICK) * (options.get('fps') or FPS))
        most = options.get('max_frames') or MAX_FRAMES
        number = min(max(asked, options.get('min_frames') or MIN_FRAMES), most)
    number = max(1, min(number, len(times)))
    instants = numpy.arange(number) * (duration / number)
    picked = numpy.searchsorted(times, instants + TICK, side='right') - 1
    picked = numpy.maximum(picked, 0)
    held = numpy.concatenate([[False], picked[1:] == picked[:-1]])
    return picked, numpy.where(held, instants, times[picked])


def fitted(width: int, height: int, frames: int, options: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the size `(width, height)`, scaled so that a frame and all frames keep within their pixel budgets.

    Args:
        options: `max_frame_pixels` and `max_video_pixels`, the latter for all frames together; `min_frame_pixels`, to
            which smaller frames are scaled up as far as these allow.
    """
    per_frame = options.get('max_frame_pixels') or MAX_FRAME_PIXELS
    budget = min(per_frame, (options.get('max_video_pixels') or MAX_VIDEO_PIXELS) / frames)
    least = min(options.get('min_frame_pixels') or 0, budget)
    if least <= width * height <= budget:
        return width, height
    scale = math.sqrt(max(least, min(budget, width * height)) / (width * height))
    rounded = math.ceil if scale > 1 and least < budget else math.floor
    return max(1, rounded(width * scale)), max(1, rounded(height * scale))
