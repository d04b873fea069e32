"""Sixty broken files cost sixty rows, each with its reason, the same on every rank; odd but sound files cost none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from align_anything.core.types import Conversation, Example, Piece, Skipped
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.loader import Loader
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, IndexSampler
from align_anything.datasets.source_loading import load_sources
from tests.datasets import fakes
from tests.datasets.clips import clip, grey, sound, tone
from tests.datasets.test_media import encoded, noisy, png_of_size

KIND = {'png': 'image', 'jpg': 'image', 'gif': 'image', 'webp': 'image', 'tiff': 'image', 'bmp': 'image'} | {
    'wav': 'audio', 'flac': 'audio', 'mp3': 'audio', 'ogg': 'audio', 'm4a': 'audio'
}  # fmt: skip
LEVELS = [10 * number for number in range(20)]
NOISE = [numpy.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=numpy.uint8) for seed in range(20)]
SECOND = tone(1.0)


def part(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def with_nan(kind: float) -> bytes:
    samples = SECOND.copy()
    samples[100] = kind
    return sound(samples, subtype='FLOAT')


def patched(content: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """The content with `new` written `offset` bytes after the first `mark`."""
    at = content.index(mark) + offset
    return content[:at] + new + content[at + len(new) :]


def audio_only() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
        track = container.add_stream('aac', rate=16000, layout='mono')
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(SECOND[None, start : start + 1024], format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 16000, start
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return buffer.getvalue()


def broken() -> dict[str, bytes]:
    mp4, webm, mkv = clip(NOISE), clip(NOISE, 'webm', 'libvpx'), clip(NOISE, 'mkv', 'ffv1', 'bgr0')
    fast = clip(NOISE, 'mov', 'mjpeg', 'yuvj420p', options={'movflags': '+faststart'})
    wav, flac, mp3 = sound(SECOND), sound(SECOND, kind='FLAC'), sound(SECOND, kind='MP3')
    vorbis, opus = sound(SECOND, kind='OGG', subtype='VORBIS'), sound(SECOND, kind='OGG', subtype='OPUS')
    heard = audio_only()
    png, jpg = encoded(noisy()), encoded(noisy(), 'JPEG')
    page = b'<!DOCTYPE html><html><body>404 Not Found</body></html>'
    junk = numpy.random.default_rng(1).bytes(20_000)
    files = {
        # Empty, or something else altogether.
        **{f'empty.{suffix}': b'' for suffix in ('png', 'wav', 'mp3', 'mp4', 'webm')},
        **{f'page.{suffix}': page for suffix in ('jpg', 'flac', 'mp4', 'mkv')},
        **{f'junk.{suffix}': junk for suffix in ('png', 'wav', 'ogg', 'mp4', 'webm')},
        **{f'zeros.{suffix}': b'\0' * 5000 for suffix in ('png', 'wav', 'mp3', 'mp4')},
        # The wrong kind under the right suffix.
        'picture.wav': png,
        'picture.mp4': png,
        'sound.png': wav,
        'sound.mp4': heard,
        'sound.webm': wav,
        'clip.png': mp4,
        'silent.wav': mp4,
        'silent.m4a': webm,
        # Cut.
        'cut.png': part(png, 0.5),
        'cut.jpg': part(jpg, 0.5),
        'cut.gif': part(encoded(noisy(), 'GIF'), 0.5),
        'cut.webp': part(encoded(noisy(), 'WEBP'), 0.5),
        'cut.tiff': part(encoded(noisy(), 'TIFF'), 0.5),
        'cut.wav': part(wav, 0.5),
        'cut.flac': part(flac, 0.5),
        'cut.mp3': part(mp3, 0.5),
        'cut.ogg': part(vorbis, 0.5),
        'cut-opus.ogg': part(opus, 0.5),
        'cut.m4a': part(heard, 0.5),
        'cut.mp4': part(mp4, 0.5),
        'late.mp4': part(mp4, 0.95),
        'cut.webm': part(webm, 0.5),
        'cut.mkv': part(mkv, 0.6),
        'cut.mov': part(fast, 0.6),
        'header.wav': part(wav, 0.001),
        'header.mp4': part(mp4, 0.01),
        'header.mkv': part(mkv, 0.005),
        # Nothing in it, or too little.
        'nothing.wav': sound(SECOND[:0]),
        'nothing.flac': sound(SECOND[:0], kind='FLAC'),
        'short.wav': sound(tone(0.01)),
        'short.flac': sound(tone(0.01), kind='FLAC'),
        'short.ogg': sound(tone(0.05), kind='OGG'),
        'nothing.mp4': clip_without_frames(),
        # Values that mean nothing.
        'nan.wav': with_nan(float('nan')),
        'infinite.wav': with_nan(float('inf')),
        'loud.wav': sound(SECOND * 20_000, subtype='FLOAT'),
        'rate.wav': patched(wav, b'fmt ', 12, (7).to_bytes(4, 'little')),
        'damaged.flac': part(flac, 0.4) + junk[:2000] + flac[len(flac) // 2 :],
        'damaged.png': png[:60] + b'\0' * 500 + png[560:],
        'float.tiff': encoded(Image.new('F', (2, 2)), 'TIFF'),
        # Too large.
        'huge.png': png_of_size(20_000, 10_000),
        'bomb.png': png_of_size(60_000, 60_000),
        'no-pixels.png': png_of_size(0, 5),
    }
    return files


def clip_without_frames() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        container.start_encoding()
    return buffer.getvalue()


def odd() -> dict[str, bytes]:
    """Files that look strange and can be used."""
    stereo = sound(numpy.stack([tone(1.0, 8000)] * 2, axis=1), 8000)
    return {
        'telephone.wav': stereo,
        'mislabelled.wav': sound(SECOND, kind='FLAC'),
        'mislabelled.mp3': sound(SECOND, kind='OGG'),
        'mislabelled.jpg': encoded(noisy()),
        'mislabelled.mkv': clip(LEVELS),
        'track.m4a': audio_only(),
        'ten-bit.mp4': clip(LEVELS, pixels='yuv420p10le'),
        'full-chroma.mp4': clip(LEVELS, pixels='yuv444p'),
        'alpha.mkv': clip(LEVELS, 'mkv', 'ffv1', 'yuva420p'),
        'one-frame.mp4': clip(LEVELS[:1]),
        'odd-size.mkv': clip([grey(9, (63, 47))] * 5, 'mkv', 'ffv1', 'bgr0'),
        'narrow.mkv': clip([grey(9, (8, 480))] * 5, 'mkv', 'ffv1', 'bgr0'),
        'one-pixel.png': encoded(Image.new('RGB', (1, 1))),
    }


def seen(conversation: Conversation, train_on: str = 'all_assistant') -> Example:
    """An encoder that looks at nothing: decoding is over by then."""
    empty = fakes.encode([{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}])
    return Example(Piece(empty.prompt.ids, empty.prompt.weights), empty.responses)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('media')
    for name, content in {**broken(), **odd()}.items():
        (path / name).write_bytes(content)
    return path


def rows_of(folder: Path, names: list[str]) -> str:
    def row(name: str) -> dict[str, str]:
        kind = KIND.get(name.rpartition('.')[2], 'video')
        return {'instruction': 'What?', 'output': 'It.', kind: name}

    return fakes.write_rows(folder / f'{len(names)}.jsonl', [row(name) for name in names])


def open_dataset(source: str) -> ExampleDataset:
    sources = load_sources(source, 'Instruction', cache_bytes=2**20)
    kinds = frozenset({'image', 'video', 'audio'})
    return ExampleDataset(sources, SupervisedTask(seen), 'any_to_text', kinds, {'audio': {'rate': 16000}})


pytestmark = pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')


def test_there_are_sixty_of_them() -> None:
    assert len(broken()) >= 60


def test_each_broken_file_costs_its_own_row_and_says_why(folder: Path) -> None:
    names = list(broken())
    dataset = open_dataset(rows_of(folder, names))
    results = [dataset[index] for index in range(len(names))]
    used = [name for name, result in zip(names, results, strict=True) if not isinstance(result, Skipped)]
    assert not used, f'these were taken for sound: {used}'
    for name, result in zip(names, results, strict=True):
        assert str(folder / name) in result.reason and '\n' not in result.reason, (name, result.reason)
    assert [dataset[index] for index in range(len(names))] == results, 'the same the second time, from the cache or not'


def test_odd_files_are_used(folder: Path) -> None:
    names = list(odd())
    dataset = open_dataset(rows_of(folder, names))
    skipped = [dataset[index] for index in range(len(names)) if isinstance(dataset[index], Skipped)]
    assert not skipped


@pytest.mark.parametrize('workers', [0, 2])
def test_every_rank_skips_the_same_rows(folder: Path, workers: int) -> None:
    names = list(broken())[:20] + list(odd())[:6]
    source = rows_of(folder, names)
    expected = {f'{source}:{number}' for number in range(1, 21)}

    def run(order: Callable[[int], int]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for rank in range(2):
            dataset = open_dataset(source)
            sampler = IndexSampler(Mixture(dataset.sizes, seed=order(rank)), BatchShape(2, 1, 2, rank))
            loader = Loader(dataset, sampler, fakes.collate, num_workers=workers)
            for batch in loader.micro_batches(0):
                reasons |= {row.source: row.reason for row in batch.skipped}
            loader.close()
        return reasons

    together = run(lambda rank: 5)
    assert set(together) == expected
    # Whichever rank reads a row, it leaves it out for the same reason.
    assert {source: reason for source, reason in run(lambda rank: 6).items()} == together
