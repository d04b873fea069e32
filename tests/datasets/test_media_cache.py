"""Each medium is decoded once for an Example, and for all rows while the cache holds it; URLs; options of parts."""

from __future__ import annotations

import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, Conversation, Media, Video
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import MediaCache, decode_conversations, decoding, make_media
from align_anything.datasets.media.cache import decoded_bytes
from tests.datasets.clips import clip, sound, tone
from tests.datasets.test_media import encoded, noisy

CLIP = clip([number * 10 for number in range(20)])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that were decoded, in order."""
    log: list[str] = []

    def logged(kind: str, decoder: Any) -> Any:
        def decode(media: Media) -> Any:
            log.append(kind)
            return decoder(media)

        return decode

    for kind, decoder in list(decoding.DECODERS.items()):
        monkeypatch.setitem(decoding.DECODERS, kind, logged(kind, decoder))
    return log


def showing(*media: Media) -> Conversation:
    return [{'role': 'user', 'content': [{'type': item.kind, item.kind: item} for item in media]}]


def test_a_pair_of_answers_decodes_its_media_once(tmp_path: Path, decoded: list[str]) -> None:
    path = tmp_path / 'a.mp4'
    path.write_bytes(CLIP)
    sources = [path, CLIP, noisy(4), numpy.zeros((4, 4, 4, 3), numpy.uint8)]
    for kind, source in zip(('video', 'video', 'image', 'video'), sources, strict=True):
        turns = [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]
        # Bound twice, as for the better and the worse answer.
        pair = [bind_media(turns, {kind: source}) for _ in range(2)]
        decoded.clear()
        better, worse = decode_conversations(pair)
        assert decoded == [kind]
        assert better[0]['content'][0][kind] is worse[0]['content'][0][kind]


@pytest.mark.parametrize('source', ['clip', [['clip/0.png', 'clip/1.png']]], ids=['folder', 'list'])
def test_a_pair_of_answers_decodes_a_video_of_frames_once(tmp_path: Path, decoded: list[str], source: Any) -> None:
    (tmp_path / 'clip').mkdir()
    for number in range(2):
        noisy(4).save(tmp_path / 'clip' / f'{number}.png')
    turns = [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]
    pair = [bind_media(turns, {'video': source}, {'video': str(tmp_path)}) for _ in range(2)]
    better, worse = decode_conversations(pair)
    assert decoded == ['video']
    assert better[0]['content'][0]['video'] is worse[0]['content'][0]['video']


def test_other_options_make_another_medium(decoded: list[str]) -> None:
    few, many = (make_media('video', CLIP, options={'num_frames': number}) for number in (2, 5))
    ((turn,),) = decode_conversations([showing(few, many, few)])
    assert [len(part['video'].frames) for part in turn['content']] == [2, 5, 2]
    assert decoded == ['video', 'video']


def test_rows_share_the_cache_until_it_is_full(tmp_path: Path, decoded: list[str]) -> None:
    media = []
    for index in range(3):
        path = tmp_path / f'{index}.png'
        path.write_bytes(encoded(Image.new('RGB', (10, 10), (index, 0, 0))))
        media.append(make_media('image', path))
    cache = MediaCache(2 * 10 * 10 * 3)  # room for two of them

    def show(index: int) -> int:
        (conversation,) = decode_conversations([showing(media[index])], cache)
        return conversation[0]['content'][0]['image'].getpixel((0, 0))[0]

    assert [show(index) for index in (0, 1, 0, 1, 0, 2, 0, 1)] == [0, 1, 0, 1, 0, 2, 0, 1]
    # 2 drives out 1, which was used before 0; 1 is decoded again.
    assert len(decoded) == 4 and cache.size == 600
    Image.new('RGB', (10, 10), (9, 0, 0)).save(tmp_path / '1.png')
    assert show(1) == 9, 'a file that was written anew is another one'


def test_what_is_too_large_or_in_memory_is_not_kept(decoded: list[str]) -> None:
    cache = MediaCache(100)
    for _ in range(2):
        decode_conversations([showing(make_media('image', encoded(noisy(64))))], cache)
        decode_conversations([showing(make_media('image', Image.new('RGB', (1, 1))))], cache)
    assert len(decoded) == 4 and cache.size == 0


def test_the_cache_counts_bytes_and_travels_empty() -> None:
    video = Video(numpy.zeros((2, 3, 4, 3), numpy.uint8), numpy.zeros(2), 1.0, Audio(tone(1.0), 16000))
    assert decoded_bytes(video) == 2 * 3 * 4 * 3 + 16000 * 4
    cache = MediaCache(10**6)
    cache.put('key', video)
    cache.put('key', video)
    assert cache.get('key') is video and cache.size == 64072
    fresh = pickle.loads(pickle.dumps(cache))
    assert (fresh.limit, fresh.size, fresh.get('key')) == (10**6, 0, None)


class Files(http.server.BaseHTTPRequestHandler):
    """Serves a few media from memory."""

    content = {'/a.png': encoded(noisy(4)), '/a.wav': sound(tone(1.0)), '/a.mp4': CLIP}

    def do_GET(self) -> None:
        body = self.content.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b'')

    def log_message(self, *_: Any) -> None:
        """Keeps the output of the tests clean."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Files) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}'
        running.shutdown()


def test_urls_are_off_unless_allowed(server: str) -> None:
    for kind, name in (('image', 'a.png'), ('audio', 'a.wav'), ('video', 'a.mp4')):
        with pytest.raises(SampleError, match='data_cfgs.allow_urls fetches'):
            make_media(kind, f'{server}/{name}')
        media = make_media(kind, f'{server}/{name}', '/folder', {'allow_urls': True})
        ((turn,),) = decode_conversations([showing(media)])
        assert decoded_bytes(turn['content'][0][kind]) > 0
    with pytest.raises(SampleError, match='gone.png. cannot be fetched: HTTP Error 404'):
        decode_conversations([showing(make_media('image', f'{server}/gone.png', options={'allow_urls': True}))])
    for other in ('ftp://a/b.png', 's3://a/b.png', 'rtsp://a/b.mp4'):
        with pytest.raises(SampleError, match='such URLs are off'):
            make_media('video', other, options={'allow_urls': True})


def test_parts_of_a_turn_say_how_they_are_decoded() -> None:
    part = {'type': 'video', 'video': CLIP, 'nframes': 3, 'max_pixels': 768, 'fps': None}
    turns = [{'role': 'user', 'content': [part, 'Q']}, {'role': 'assistant', 'content': 'A'}]
    lazy = bind_media(turns, {}, options={'video': {'num_frames': 8}})
    assert decode_conversations([lazy])[0][0]['content'][0]['video'].frames.shape == (3, 24, 32, 3)
