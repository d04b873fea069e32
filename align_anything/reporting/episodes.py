"""Episodes as animations: what was seen before each step, and under it what was done and where the body was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from align_anything.core.actions import STATE
from align_anything.core.types import ACTION, Conversation, Message, Video, decoded_medium
from align_anything.datasets.media.writing import gif
from align_anything.datasets.spoken_actions import written_state

HEIGHT = 160
"""Of the pictures of a step."""
LINE, MARGIN = 12, 4
WIDTH = 320
"""Least width, so that numbers fit."""
LETTER = 6
"""Width of a letter of the font that Pillow has."""
STEPS = 150
"""Most steps that are drawn, evenly over the episode."""
FPS = 5.0


def drawn_episode(conversation: Conversation, steps: int = STEPS) -> Video | None:
    """Returns a decoded episode as a video, one frame for each of its turns that acts; None where none does."""
    pairs = [
        (before, turn)
        for before, turn in zip(conversation, conversation[1:], strict=False)
        if any(part['type'] == ACTION for part in turn['content'])
    ]
    if not pairs:
        return None
    chosen = sorted({round(number * (len(pairs) - 1) / max(1, steps - 1)) for number in range(min(steps, len(pairs)))})
    if len(pairs) <= steps:
        chosen = list(range(len(pairs)))
    frames = [_frame(number, len(pairs), *pairs[number]) for number in chosen]
    width, height = (max(frame.size[side] for frame in frames) for side in (0, 1))
    whole = [Image.new('RGB', (width, height)) for _ in frames]
    for canvas, frame in zip(whole, frames, strict=True):
        canvas.paste(frame)
    return Video(np.stack([np.asarray(canvas) for canvas in whole]), np.arange(len(whole)) / FPS, FPS)


def animated_episode(conversation: Conversation, steps: int = STEPS) -> bytes | None:
    """Returns a decoded episode as a GIF file; None where nothing is done in it."""
    video = drawn_episode(conversation, steps)
    return None if video is None else gif(video)


def _frame(number: int, count: int, seen: Message, done: Message) -> Image.Image:
    pictures = [_fitted(decoded_medium(part)) for part in seen['content'] if part['type'] == 'image']
    pictures = [picture for picture in pictures if picture is not None]
    width = max(WIDTH, sum(picture.width for picture in pictures))
    lines = [line for told in _told(number, count, seen, done) for line in _wrapped(told, width)]
    top = HEIGHT if pictures else 0
    canvas = Image.new('RGB', (width, top + LINE * len(lines) + 2 * MARGIN))
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((MARGIN, top + MARGIN + LINE * row), line, fill='white')
    return canvas


def _told(number: int, count: int, seen: Message, done: Message) -> Sequence[str]:
    actions = [part[ACTION].written for part in done['content'] if part['type'] == ACTION]
    state: Mapping[str, Any] = seen.get(STATE, {})
    return [f'{number + 1}/{count} {" ".join(actions)}', *([written_state(state, 3)] if state else [])]


def _wrapped(text: str, width: int) -> list[str]:
    most = max(1, (width - 2 * MARGIN) // LETTER)
    # The font that Pillow has knows no other letters.
    plain = text.encode('latin-1', 'replace').decode('latin-1')
    return [plain[start : start + most] for start in range(0, len(plain), most)]


def _fitted(image: Any) -> Image.Image | None:
    if image is None:
        return None
    size = (max(1, round(image.width * HEIGHT / image.height)), HEIGHT)
    resample = Image.Resampling.NEAREST if image.height < HEIGHT else Image.Resampling.BILINEAR
    return image.convert('RGB').resize(size, resample)
