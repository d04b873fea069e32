"""Where a medium comes from: a path, a data URI, a URL, bytes, a record of a feature, an array."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Media, MediaKind

DOWNLOAD_SECONDS = 30
DOWNLOAD_BYTES = 2**30
NUMBERS = {
    'num_frames',
    'fps',
    'min_frames',
    'max_frames',
    'max_frame_pixels',
    'max_video_pixels',
    'min_frame_pixels',
    'min_image_pixels',
    'max_image_pixels',
    'max_seconds',
    'sampling_rate',
}
"""Options that rows may bring along, so that their values need checking."""


Folders = str | Sequence[str]
"""Where relative paths start: in one folder, or in the first of several in which there is such a file."""


def make_media(kind: MediaKind, source: Any, folder: Folders = '', options: Mapping[str, Any] | None = None) -> Media:
    """Returns what a row holds for one medium as a `Media`, not decoded; relative paths start from `folder`.

    Takes a path, a data URI, bytes, an array, a PIL image, the `{'bytes', 'path'}` record of a Hugging Face feature,
    `{'array', 'sampling_rate'}` of an audio clip, a list of frames or `{'frames', 'fps'}` of a video, the frame of a
    file as an image (see `is_frame`), `{'codes'}` or `{'embedding'}` of any; also a `Media` of any of these, whose own
    options go before `options`. URLs need the option `allow_urls`. A list of numbers as an image or a video, and a path
    that ends in `.npy`, are embeddings.

    Raises:
        SampleError: the source is null, empty, or a URL where none is allowed; or its own options are no numbers, or
            mean nothing to an embedding.
    """
    options, own = dict(options or {}), {}
    if isinstance(source, Media):
        _check_numbers(kind, source.options)
        own = source.options
        options = _merged(options, own)
        source = source.source
    if source is None:
        raise SampleError(f'the {kind} is null.')
    if (kind != 'audio' and is_vector(source)) or (isinstance(source, str) and source.lower().endswith('.npy')):
        source = {'embedding': source}
    if embedding_of(source) is not None:
        others = [key for key, value in source.items() if value is not None and key != 'embedding']
        if others or own:
            unread = ', '.join(map(repr, sorted([*others, *own])))
            raise SampleError(f'the {kind} is an embedding and has {unread} too, which says nothing about a vector.')
    return Media(kind, _located(kind, source, folder, bool(options.get('allow_urls'))), options)


def is_vector(source: Any) -> bool:
    """Tells whether a value is a list of numbers."""
    if not isinstance(source, (list, tuple)) or not source:
        return False
    return isinstance(source[0], Real) and not isinstance(source[0], bool)


def embedding_of(source: Any) -> Any:
    """Returns the vector of a medium that comes as one, or the file that it is in; None for any other medium."""
    return source.get('embedding') if isinstance(source, Mapping) else None


def is_frame(source: Any) -> bool:
    """Tells whether the source of an image is a frame of a file.

    That is `{'video': path, 'frame': number}`, `{'video': path, 'time': seconds}`, which may have a `tolerance` in
    seconds and `frames`, a list of how many the file may have, or `{'hdf5': path, 'dataset': its name in the file,
    'frame': number}`. Numbers start at 0.
    """
    return isinstance(source, Mapping) and (source.get('video') is not None or source.get('hdf5') is not None)


def file_of(source: Mapping[str, Any]) -> str:
    """Returns the path of the file that a frame is in."""
    return str(source['video'] if source.get('video') is not None else source['hdf5'])


def describe_frame(source: Mapping[str, Any]) -> str:
    """Returns words for a frame that find it again."""
    if source.get('video') is None:
        return f"frame {source.get('frame')} of '{source.get('dataset')}' in '{file_of(source)}'"
    at = f'at {source["time"]} s' if source.get('frame') is None else source['frame']
    return f"frame {at} of '{file_of(source)}'"


def describe(media: Media) -> str:
    """Returns words for a medium that find it again: its path, or what it is made of."""
    source = media.source
    vector = embedding_of(source)
    if vector is not None:
        return f"{media.kind} embedding '{vector}'" if isinstance(vector, str) else f'{media.kind} embedding'
    if isinstance(source, Mapping) and source.get('path'):
        return f"{media.kind} '{source['path']}'"
    if is_frame(source):
        return f'{media.kind}, {describe_frame(source)}'
    content = source['bytes'] if _is_record(source) else source
    if isinstance(content, str):
        return f"{media.kind} '{content if len(content) < 200 else content[:60] + '…'}'"
    if isinstance(content, (bytes, bytearray)):
        return f'{media.kind} of {len(content)} bytes'
    if isinstance(source, Mapping) and source.get('codes') is not None:
        return f'{media.kind} of codes'
    return f'{media.kind} ({type(content).__name__})'


def as_file(media: Media) -> Any:
    """Returns the path of the file, or the bytes of a record, data URI or URL; any other source as it is.

    Raises `SampleError` when there is no such file, or nothing in it.
    """
    source = media.source['bytes'] if _is_record(media.source) else media.source
    if isinstance(source, str):
        if source.startswith('data:'):
            source = _from_data_uri(media, source)
        elif _scheme(source):
            source = _downloaded(media, source)
        else:
            _check_file(media, source)
    if isinstance(source, (bytes, bytearray)) and not source:
        raise SampleError(f'{describe(media)} is empty (0 bytes).')
    return source


def content(media: Media) -> Any:
    """Returns the bytes of files, records, data URIs and URLs, and any other source as it is.

    Raises `SampleError` when there is no such file, or nothing in it.
    """
    source = as_file(media)
    return Path(source).read_bytes() if isinstance(source, str) else source


def _is_record(source: Any) -> bool:
    return isinstance(source, Mapping) and source.get('bytes') is not None


def _merged(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a run with those of one medium over them."""
    merged = {**given, **own}
    if 'fps' in own and 'num_frames' not in own:
        # A number of frames goes before a rate, so that of the run would silence the rate asked for here.
        merged.pop('num_frames', None)
    return merged


def _check_numbers(kind: MediaKind, options: Mapping[str, Any]) -> None:
    for name in NUMBERS & options.keys():
        value = options[name]
        is_integer = name not in ('fps', 'max_seconds')
        if isinstance(value, bool) or not isinstance(value, int if is_integer else (int, float)) or value <= 0:
            wanted = 'a whole number' if is_integer else 'a number'
            raise SampleError(f'{name} of the {kind} should be {wanted} above 0 but is {value!r}.')


def _located(kind: MediaKind, source: Any, folder: Folders, allow_urls: bool) -> Any:
    if isinstance(source, (str, Path)):
        return _located_path(kind, str(source), folder, allow_urls)
    if isinstance(source, list) and source and isinstance(source[0], (str, Path, Mapping)):
        return [_located(kind, item, folder, allow_urls) for item in source]
    if not isinstance(source, Mapping):
        return source
    vector = embedding_of(source)
    if vector is not None:
        is_path = isinstance(vector, (str, Path))
        return {'embedding': _located_path(kind, str(vector), folder, allow_urls) if is_path else vector}
    if is_frame(source):
        key = 'video' if source.get('video') is not None else 'hdf5'
        return {**source, key: _located_path(kind, str(source[key]), folder, False)}
    if source.get('frames') is not None:
        return {**source, 'frames': _located(kind, source['frames'], folder, allow_urls)}
    if source.get('array') is not None or not {'bytes', 'path'} & source.keys():
        return source
    given, path = source.get('bytes'), source.get('path')
    if given is None and not path:
        raise SampleError(f'the {kind} record has neither bytes nor path.')
    # Beside bytes, path is only the name the file once had.
    return _located(kind, path, folder, allow_urls) if given is None else {'bytes': given, 'path': path}


def _located_path(kind: MediaKind, source: str, folder: Folders, allow_urls: bool) -> str:
    if not source:
        raise SampleError(f'the path of the {kind} is empty.')
    if source.startswith('data:'):
        return source
    scheme = _scheme(source)
    if scheme in ('http', 'https') and allow_urls:
        return source
    if scheme in ('', 'file'):
        starts = [folder] if isinstance(folder, str) else folder
        paths = [os.path.join(start, source[len('file://') :] if scheme else source) for start in starts]
        return next(filter(os.path.exists, paths), paths[0]) if len(paths) > 1 else paths[0]
    way_out = 'data_cfgs.allow_urls fetches http and https ones, or' if not allow_urls else ''
    raise SampleError(
        f"the {kind} is the URL '{source}' and such URLs are off: {way_out} download it and give its path."
    )


def _scheme(source: str) -> str:
    match = re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', source)
    return match[1].lower() if match else ''


def _check_file(media: Media, path: str) -> None:
    if os.path.isdir(path):
        raise SampleError(f'{describe(media)} is a folder.')
    if not os.path.exists(path):
        raise SampleError(f'{describe(media)} does not exist.')
    if os.path.getsize(path) == 0:
        raise SampleError(f'{describe(media)} is empty (0 bytes).')


def _from_data_uri(media: Media, source: str) -> bytes:
    header, comma, payload = source.partition(',')
    if not comma or not header.endswith(';base64'):
        raise SampleError(f'{describe(media)} is no base64 data URI.')
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise SampleError(f'{describe(media)} holds broken base64: {error}.') from error


def _downloaded(media: Media, url: str) -> bytes:
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={'User-Agent': 'align-anything'}), timeout=DOWNLOAD_SECONDS) as answer:
            data = answer.read(DOWNLOAD_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SampleError(f'{describe(media)} cannot be fetched: {error}.') from error
    if len(data) > DOWNLOAD_BYTES:
        raise SampleError(f'{describe(media)} is larger than {DOWNLOAD_BYTES} bytes: download it and give its path.')
    return data
