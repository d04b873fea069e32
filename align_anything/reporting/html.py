"""HTML files that need no other: a page, conversations, and decoded media made small."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from align_anything.core.types import Audio, Conversation, MediaKind, Video

SIDE = 320
FRAME_SIDE = 160
STRIP_HEIGHT = 96
FRAMES = 8
SECONDS = 10
FULL_SCALE = 32767
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --trained: #1a7f37; --media: #a02fb4; }
@media (prefers-color-scheme: dark) { :root { --trained: #56c271; --media: #df8fea; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
pre, .text { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { font: 13px/1.5 ui-monospace, monospace; background: var(--soft); padding: .6rem; border-radius: 6px; }
.sample { border: 1px solid var(--line); border-radius: 8px; padding: 0 1rem 1rem; margin: 1.2rem 0; }
.turn { margin: .4rem 0; padding: .3rem .8rem; border-left: 3px solid var(--line); }
.turn .text { max-height: 24rem; overflow: auto; }
.turn.assistant { border-color: var(--trained); }
.role, figcaption, .note { font-size: 12px; opacity: .7; }
figure { display: inline-block; margin: .3rem .6rem .3rem 0; } img { max-width: 100%; margin-right: 2px; }
"""


def make_page(title: str, body: str, style: str = '') -> str:
    """Returns a whole file with the given title (text) and body (HTML): no scripts, nothing loaded from elsewhere."""
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>
{body}
</body></html>
"""
    # Rows may hold halves of surrogate pairs, which no file can.
    return page.encode('utf-8', 'replace').decode('utf-8')


def show_conversation(conversation: Conversation) -> str:
    """Returns the turns with their media."""
    turns = []
    for message in conversation:
        parts = ''.join(
            f'<div class="text">{escape(part["text"])}</div>'
            if part['type'] == 'text'
            else show_medium(part['type'], part[part['type']])
            for part in message['content']
        )
        role = escape(str(message['role']))
        kind = ' assistant' if message['role'] == 'assistant' else ''
        turns.append(f'<div class="turn{kind}"><div class="role">{role}</div>{parts}</div>')
    return ''.join(turns)


def show_media(parts: Sequence[dict[str, Any]]) -> str:
    """Returns the media among the parts of a message."""
    return ''.join(show_medium(part['type'], part[part['type']]) for part in parts if part['type'] != 'text')


def strip_of(conversation: Conversation) -> Image.Image | None:
    """Returns the first images of a conversation, and frames of its videos, side by side; None without any."""
    media = [(part['type'], part.get(part['type'])) for message in conversation for part in message['content']]
    pictures = [picture for kind, item in media for picture in _pictures(kind, item)][:FRAMES]
    if not pictures:
        return None
    small = [_thumbnail(picture, (2 * STRIP_HEIGHT, STRIP_HEIGHT)) for picture in pictures]
    strip = Image.new('RGB', (sum(picture.width for picture in small), STRIP_HEIGHT))
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def show_medium(kind: MediaKind, item: Any) -> str:
    """Returns the medium as the model gets it, made small; a kind without an image of its own is named."""
    show = SHOWN_AS.get(kind)
    return f'<span class="medium">{escape(kind)}</span>' if show is None else show(item)


def _image(item: Image.Image) -> str:
    return _figure(_picture(item, SIDE), f'image {item.width} × {item.height}')


def _video(video: Video) -> str:
    frames, count = _pictures('video', video), len(video.frames)
    height, width = video.frames.shape[1:3]
    shown = '' if len(frames) == count else f', {len(frames)} of them shown'
    caption = f'video {width} × {height}, {count} frames at {_seconds(video.timestamps)} s{shown}'
    figure = _figure(''.join(_picture(frame, FRAME_SIDE) for frame in frames), caption)
    return figure + ('' if video.audio is None else _audio(video.audio))


def _audio(sound: Audio) -> str:
    samples = np.clip(sound.samples[: SECONDS * sound.rate], -1, 1)
    file = io.BytesIO()
    with wave.open(file, 'wb') as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sound.rate)
        writer.writeframes((samples * FULL_SCALE).astype('<i2').tobytes())
    length = len(sound.samples) / sound.rate
    truncated = f', the first {SECONDS} of them here' if length > SECONDS else ''
    source = _data_uri('audio/wav', file.getvalue())
    return _figure(f'<audio controls src="{source}"></audio>', f'audio {length:.1f} s at {sound.rate} Hz{truncated}')


SHOWN_AS: dict[MediaKind, Callable[[Any], str]] = {'image': _image, 'video': _video, 'audio': _audio}


def _pictures(kind: str, item: Any) -> list[Image.Image]:
    """What there is to see of a medium: the image itself, or frames spread over the video."""
    if kind == 'image':
        return [item]
    if kind != 'video':
        return []
    last, steps = len(item.frames) - 1, min(FRAMES, len(item.frames)) - 1
    return [Image.fromarray(item.frames[round(n * last / max(steps, 1))]) for n in range(steps + 1)]


def _thumbnail(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    small = image.convert('RGB')
    small.thumbnail(size)
    return small


def _picture(image: Image.Image, side: int) -> str:
    file = io.BytesIO()
    _thumbnail(image, (side, side)).save(file, 'JPEG', quality=80)
    return f'<img alt="" src="{_data_uri("image/jpeg", file.getvalue())}">'


def _figure(content: str, caption: str) -> str:
    return f'<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>'


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _seconds(times: Any) -> str:
    if len(times) > FRAMES:
        return f'{times[0]:.2f}, {times[1]:.2f}, …, {times[-1]:.2f}'
    return ', '.join(f'{time:.2f}' for time in times)
