"""Media: where they come from, and decoding them in a worker."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Media, MediaKind

MAX_PIXELS = 2**26
"""Largest image decoded by default, 8192 x 8192: beyond it a file is broken or a decompression bomb."""
SCALE_16_BIT = 1 / 257
ORIENTATION = 0x0112

Decoder = Callable[[Media], Any]
_DECODERS: dict[MediaKind, Decoder] = {}


def decodes(kind: MediaKind) -> Callable[[Decoder], Decoder]:
    """Decorator that makes a function the decoder of one kind of media."""

    def decorate(decoder: Decoder) -> Decoder:
        _DECODERS[kind] = decoder
        return decoder

    return decorate


def make_media(kind: MediaKind, source: Any, folder: str = '', options: Mapping[str, Any] | None = None) -> Media:
    """Returns what a row holds for one medium as a `Media`, not decoded; relative paths start from `folder`.

    Takes a path, a data URI, bytes, an array, a PIL image, or the `{'bytes', 'path'}` record of a Hugging Face feature.
    Raises `SampleError` when the source is null, empty or a URL.
    """
    if isinstance(source, Media):
        return source
    if source is None:
        raise SampleError(f'the {kind} is null.')
    if isinstance(source, (str, Path)):
        source = _located(kind, str(source), folder)
    elif isinstance(source, Mapping) and {'bytes', 'path'} & source.keys():
        content, path = source.get('bytes'), source.get('path')
        if content is None and not path:
            raise SampleError(f'the {kind} record has neither bytes nor path.')
        # Beside bytes, path is only the name the file once had.
        source = _located(kind, path, folder) if content is None else {'bytes': content, 'path': path}
    return Media(kind, source, dict(options or {}))


def decode(media: Media) -> Any:
    """Returns the decoded medium: for an image a `PIL.Image.Image` in RGB, upright.

    `media.options['max_pixels']` bounds the size of an image. Raises `SampleError` naming the file and the reason when
    it is missing, empty, truncated, too large or not what it claims to be.
    """
    if media.kind not in _DECODERS:
        raise SampleError(f'{media.kind} media cannot be decoded; kinds that can: {", ".join(_DECODERS)}.')
    try:
        return _DECODERS[media.kind](media)
    except SampleError:
        raise
    except Exception as error:
        # Decoding libraries raise anything at all on broken files, and one file may cost only its own sample.
        reason = str(error) or type(error).__name__
        raise SampleError(f'{describe(media)} cannot be decoded: {reason}.') from error


def decode_conversation(conversation: Conversation) -> Conversation:
    """Returns the conversation with every `Media` in it decoded. Raises `SampleError` as `decode` does."""
    return [{**message, 'content': [_decoded(part) for part in message['content']]} for message in conversation]


def describe(media: Media) -> str:
    """Returns words for a medium that find it again: its path, or what it is made of."""
    source = media.source
    if isinstance(source, Mapping) and source.get('path'):
        return f"{media.kind} '{source['path']}'"
    content = source.get('bytes') if isinstance(source, Mapping) else source
    if isinstance(content, str):
        return f"{media.kind} '{content if len(content) < 200 else content[:60] + '…'}'"
    if isinstance(content, (bytes, bytearray)):
        return f'{media.kind} of {len(content)} bytes'
    return f'{media.kind} ({type(content).__name__})'


def _decoded(part: dict[str, Any]) -> dict[str, Any]:
    kind = part['type']
    return {'type': kind, kind: decode(part[kind])} if isinstance(part.get(kind), Media) else part


def _located(kind: MediaKind, source: str, folder: str) -> str:
    if not source:
        raise SampleError(f'the path of the {kind} is empty.')
    if source.startswith('data:'):
        return source
    scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', source)
    if scheme and scheme[1].lower() != 'file':
        raise SampleError(f"the {kind} is the URL '{source}' and URLs are off: download it and give its path.")
    path = source.removeprefix(scheme[0]) if scheme else source
    return os.path.join(folder, path)


def _content(media: Media) -> Any:
    """Returns the bytes of files, records and data URIs, and any other source as it is."""
    source = media.source
    if isinstance(source, Mapping) and 'bytes' in source:
        source = source['bytes']
    if isinstance(source, str):
        source = _from_data_uri(media) if source.startswith('data:') else _from_file(media)
    if isinstance(source, (bytes, bytearray)) and not source:
        raise SampleError(f'{describe(media)} is empty (0 bytes).')
    return source


def _from_file(media: Media) -> bytes:
    if os.path.isdir(media.source):
        raise SampleError(f'{describe(media)} is a folder.')
    if not os.path.exists(media.source):
        raise SampleError(f'{describe(media)} does not exist.')
    return Path(media.source).read_bytes()


def _from_data_uri(media: Media) -> bytes:
    header, comma, payload = media.source.partition(',')
    if not comma or not header.endswith(';base64'):
        raise SampleError(f'{describe(media)} is no base64 data URI.')
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise SampleError(f'{describe(media)} holds broken base64: {error}.') from error


@decodes('image')
def _decode_image(media: Media) -> Any:
    import numpy
    from PIL import Image, ImageOps

    limit = media.options.get('max_pixels') or MAX_PIXELS
    source = _content(media)
    if isinstance(source, (list, numpy.ndarray)):
        source = _from_array(numpy.asarray(source), media)
    if isinstance(source, (bytes, bytearray)):
        try:
            source = Image.open(io.BytesIO(source))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise SampleError(f'{describe(media)} is too large: {error}') from error
        except Image.UnidentifiedImageError as error:
            raise SampleError(f'{describe(media)} is not an image.') from error
    if not isinstance(source, Image.Image):
        raise SampleError(f'{describe(media)} is nothing that an image can be made from.')
    width, height = source.size
    if width * height > limit:
        raise SampleError(f'{describe(media)} is too large: {width} x {height} is over {limit} pixels.')
    if width * height == 0:
        raise SampleError(f'{describe(media)} has no pixels: {width} x {height}.')
    # Transposing copies the image even where nothing is to be turned.
    upright = source if source.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(source)
    return _to_rgb(upright, media)


def _to_rgb(image: Any, media: Media) -> Any:
    from PIL import Image

    if image.mode.startswith('I'):
        # Pillow clips 16 bit values to 255 instead of scaling them.
        image = image.convert('I').point(lambda value: value * SCALE_16_BIT).convert('L')
    if image.mode == 'F':
        raise SampleError(f'{describe(media)} has float pixels, whose range nobody knows: save it with 8 or 16 bits.')
    if 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    # convert() returns a copy also where nothing changes, so the caller's image stays untouched and loaded.
    return image.convert('RGB')


def _from_array(array: Any, media: Media) -> Any:
    """Returns an image of an array `(height, width[, channels])` or `(channels, height, width)`."""
    import numpy
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or not array.size:
        raise SampleError(f'{describe(media)} of shape {array.shape} is no image.')
    if array.dtype.kind == 'b':
        array = array.astype(numpy.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype.kind == 'f':
        if not (low >= 0 and high <= 1):
            raise SampleError(f'{describe(media)} has float values from {low} to {high}; they should lie in 0 to 1.')
        array = (array * 255).round()
    elif array.dtype == numpy.uint16:
        array = (array * SCALE_16_BIT).round()
    elif array.dtype.kind not in 'iu' or low < 0 or high > 255:
        raise SampleError(f'{describe(media)} has {array.dtype} values from {low} to {high}; they should be 0 to 255.')
    return Image.fromarray(array.astype(numpy.uint8))
