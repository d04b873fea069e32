"""Templates filled with text, which pages get escaped, and decoded media made small, so that a page needs no other."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.types import Audio, CodedMedia, Conversation, Embedding, MediaKind, Video, decoded_medium
from align_anything.datasets.media.writing import AUDIO_TYPE, data_uri, wav

SIDE = 320
FRAME_SIDE = 160
STRIP_HEIGHT = 96
TINY = 48
"""Sides of images below which a person sees nothing: they are enlarged, each pixel to a square."""
FRAMES = 8
SECONDS = 10
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class Figure(NamedTuple):
    """What a page shows of a medium: images and a sound, as data URIs, under a caption; or the caption alone."""

    caption: str
    images: Sequence[str] = ()
    sound: str = ''


def render(template: str, **values: Any) -> str:
    """Returns a template of `reporting/templates` with the values in it, in HTML every one of them escaped.

    Raises UndefinedError when the template names a value that was not given.
    """
    page = _templates().get_template(template).render(policy=POLICY, **values)
    # Rows may hold halves of surrogate pairs, which no file can.
    return page.encode('utf-8', 'replace').decode('utf-8')


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=lambda name: not name.endswith('.md.jinja'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['figures'] = _figures_of_part
    return environment


def _figures_of_part(part: Mapping[str, Any]) -> list[Figure]:
    return figures_of(part['type'], part.get(part['type']))


def strip_of(conversation: Conversation) -> Image.Image | None:
    """Returns the first images of a conversation, and frames of its videos, side by side; None without any."""
    media = [(part['type'], decoded_medium(part)) for message in conversation for part in message['content']]
    pictures = [picture for kind, item in media if item is not None for picture in _pictures(kind, item)][:FRAMES]
    if not pictures:
        return None
    small = [_thumbnail(picture, (2 * STRIP_HEIGHT, STRIP_HEIGHT)) for picture in pictures]
    strip = Image.new('RGB', (sum(picture.width for picture in small), STRIP_HEIGHT))
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def stacked(pictures: Sequence[Image.Image | None]) -> Image.Image | None:
    """Returns pictures below each other, a black line for each that is None; None without any."""
    if not any(pictures):
        return None
    width = max(picture.width for picture in pictures if picture is not None)
    rows = [picture or Image.new('RGB', (width, 1)) for picture in pictures]
    column = Image.new('RGB', (width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        column.paste(row, (0, top))
        top += row.height
    return column


def figures_of(kind: MediaKind, item: Any) -> list[Figure]:
    """Returns the medium as the model gets it, made small; what cannot be shown is named, such as mere codes."""
    if isinstance(item, CodedMedia):
        return [Figure(f'{kind} of {" × ".join(map(str, item.codes.shape))} codes')]
    if isinstance(item, Embedding):
        return [Figure(f'{kind}, as an embedding of {len(item.values)} numbers')]
    if isinstance(item, Actions):
        return [Figure(item.written)]
    show = SHOWN_AS.get(kind)
    return [Figure(kind)] if show is None or item is None else show(item)


def _image(item: Image.Image) -> list[Figure]:
    return [Figure(f'image {item.width} × {item.height}', [_picture(item, SIDE)])]


def _video(video: Video) -> list[Figure]:
    frames, count = _pictures('video', video), len(video.frames)
    height, width = video.frames.shape[1:3]
    shown = '' if len(frames) == count else f', {len(frames)} of them shown'
    caption = f'video {width} × {height}, {count} frames at {_seconds(video.timestamps)} s{shown}'
    figure = Figure(caption, [_picture(frame, FRAME_SIDE) for frame in frames])
    return [figure, *([] if video.audio is None else _audio(video.audio))]


def _audio(sound: Audio) -> list[Figure]:
    heard = Audio(sound.samples[: SECONDS * sound.rate], sound.rate)
    length = len(sound.samples) / sound.rate
    truncated = f', the first {SECONDS} of them here' if length > SECONDS else ''
    source = data_uri(AUDIO_TYPE, wav(heard, rounded=True))
    return [Figure(f'audio {length:.1f} s at {sound.rate} Hz{truncated}', sound=source)]


SHOWN_AS: dict[MediaKind, Callable[[Any], list[Figure]]] = {'image': _image, 'video': _video, 'audio': _audio}


def _pictures(kind: str, item: Any) -> list[Image.Image]:
    """What there is to see of a medium: the image itself, or frames spread over the video."""
    if type(item) is Embedding or kind not in ('image', 'video'):
        return []
    if kind == 'image':
        return [item]
    last, steps = len(item.frames) - 1, min(FRAMES, len(item.frames)) - 1
    return [Image.fromarray(item.frames[round(n * last / max(steps, 1))]) for n in range(steps + 1)]


def _thumbnail(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    small = image.convert('RGB')
    if max(small.size) < TINY:
        factor = STRIP_HEIGHT // max(small.size)
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    small.thumbnail(size)
    return small


def _picture(image: Image.Image, side: int) -> str:
    file = io.BytesIO()
    _thumbnail(image, (side, side)).save(file, 'JPEG', quality=80)
    return data_uri('image/jpeg', file.getvalue())


def _seconds(times: Any) -> str:
    if len(times) > FRAMES:
        return f'{times[0]:.2f}, {times[1]:.2f}, …, {times[-1]:.2f}'
    return ', '.join(f'{time:.2f}' for time in times)
