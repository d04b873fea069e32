"""From media that lie somewhere to decoded ones, each decoded once."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, Conversation, Media, MediaKind
from align_anything.datasets.media.audio import decode_audio, split_audio
from align_anything.datasets.media.cache import MediaCache, lasting_key, passing_key
from align_anything.datasets.media.codes import brings_codes, decode_codes
from align_anything.datasets.media.embedding import decode_embedding
from align_anything.datasets.media.frames import frame_size, read_frames
from align_anything.datasets.media.image import decode_image, finished, finished_size, image_size
from align_anything.datasets.media.known import Lookup
from align_anything.datasets.media.sources import describe, embedding_of, file_of, is_frame
from align_anything.datasets.media.video import decode_video, video_size

DECODERS: dict[MediaKind, Callable[[Media], Any]] = {
    'image': decode_image,
    'video': decode_video,
    'audio': decode_audio,
}
SIZES: dict[MediaKind, Callable[[Media], tuple[int, ...]]] = {
    'image': image_size,
    'video': video_size,
    'audio': lambda media: decode_audio(media).samples.shape,
}


def decode(media: Media) -> Any:
    """Returns the decoded medium: an upright RGB `PIL.Image.Image`, a `Video`, an `Audio`; or what the row brings
    instead, its codes or an `Embedding`.

    What `media.options` may hold is said by `decode_image`, `decode_video` and `decode_audio`. Raises `SampleError`
    naming the file and the reason when it is missing, empty, truncated, too large or not what it claims to be.
    """
    if is_frame(media.source):
        decoder = _decode_frame
    elif brings_codes(media.source):
        decoder = decode_codes
    else:
        decoder = DECODERS[media.kind] if embedding_of(media.source) is None else decode_embedding
    return _guarded(media, decoder)


def _decode_frame(media: Media) -> Any:
    return finished(read_frames([media])[0], media.options)


def _guarded(media: Media, read: Callable[[Media], Any]) -> Any:
    try:
        return read(media)
    except SampleError:
        raise
    except Exception as error:
        # Decoding libraries raise anything at all on broken files, and one file may cost only its own sample.
        # An address in their words would make the same row's reason differ between ranks.
        reason = re.sub(r' at 0x[0-9a-f]+', '', str(error)) or type(error).__name__
        raise SampleError(f'{describe(media)} cannot be decoded: {reason}.') from error


def size_of(media: Media) -> tuple[int, ...]:
    """Returns the size that a medium has once it is decoded, without decoding it where a look into its file tells.

    `(height, width)` of an image, `(frames, height, width)` of a video, `(samples,)` of audio. Raises `SampleError` as
    `decode` does; some of what `decode` would find is not seen here.
    """
    return _guarded(media, _size_of_frame if is_frame(media.source) else SIZES[media.kind])


def _size_of_frame(media: Media) -> tuple[int, int]:
    return finished_size(*frame_size(media), media.options)


def _cached(media: Media, key: Hashable, cache: MediaCache | None) -> Any:
    if cache is None or key is None:
        return decode(media)
    value = cache.get(key)
    if value is None:
        value = decode(media)
        cache.put(key, value)
    return value


def _frames_together(conversations: Sequence[Conversation], cache: MediaCache | None) -> dict[Hashable, Any]:
    """The frames of files that the conversations show, by their passing keys; each file is read once."""
    frames: dict[Hashable, Media] = {}
    for part in (part for turns in conversations for message in turns for part in message['content']):
        media = part.get(part['type'])
        if isinstance(media, Media) and is_frame(media.source):
            frames[passing_key(media)] = media
    seen: dict[Hashable, Any] = {}
    files: dict[str, dict[Hashable, Media]] = {}
    for key, media in frames.items():
        kept = None if cache is None else cache.get(lasting_key(media))
        if kept is None:
            files.setdefault(file_of(media.source), {})[key] = media
        else:
            seen[key] = kept
    for of_file in files.values():
        media = list(of_file.values())
        images = _guarded(media[0], lambda _, media=media: read_frames(media))
        for (key, medium), image in zip(of_file.items(), images, strict=True):
            seen[key] = finished(image, medium.options)
            if cache is not None and (lasting := lasting_key(medium)) is not None:
                cache.put(lasting, seen[key])
    return seen


def decode_conversations(
    conversations: Sequence[Conversation], cache: MediaCache | None = None, lookup: Lookup | None = None
) -> list[Conversation]:
    """Returns the conversations of one Example decoded; a medium that stands in several of them is decoded once.

    With a `lookup` those that it knows stay undecoded: a `Known` stands for each of them.
    A long audio clip whose option `long_audio` is `split` becomes several parts. Raises `SampleError` as `decode` does.
    """
    seen = _frames_together(conversations, cache)
    pieces: dict[Hashable, list[Any]] = {}

    def decoded(media: Media) -> Any:
        passing = passing_key(media)
        if passing in seen:
            return seen[passing]
        lasting = lasting_key(media)
        value = seen.get(lasting)
        if value is None:
            read = partial(_cached, media, lasting, cache)
            value = read() if lookup is None else lookup(media, read)
        seen[passing] = value
        if lasting is not None:
            seen[lasting] = value
        return value

    def parts_of(part: dict[str, Any]) -> list[dict[str, Any]]:
        kind = part['type']
        media = part.get(kind)
        if not isinstance(media, Media):
            return [part]
        passing = passing_key(media)
        if passing not in pieces:
            value = decoded(media)
            pieces[passing] = split_audio(value, media) if isinstance(value, Audio) else [value]
        values = pieces[passing]
        return [{'type': kind, kind: value} for value in values]

    return [
        [
            {**message, 'content': [new for part in message['content'] for new in parts_of(part)]}
            for message in conversation
        ]
        for conversation in conversations
    ]
