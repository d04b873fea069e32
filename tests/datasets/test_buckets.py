"""Every micro-batch holds rows of one bucket, on all ranks alike; what is known of sizes without decoding."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from align_anything.core.buckets import bucket_sizes, nearest_bucket
from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Media
from align_anything.datasets.buckets import BucketSampler
from align_anything.datasets.measuring import measure_buckets, size_of_answer
from align_anything.datasets.media import decode, size_of
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, IndexSampler
from tests.datasets.clips import clip, sound, tone
from tests.datasets.fakes import make_dataset, write_rows

ROWS = 101
BUCKETS = [(64, 64) if row % 3 else (32, 128) if row % 2 else (128, 32) for row in range(ROWS)]
BUCKETS[7] = (16, 256)


def ranks(
    cut: tuple[int, int, int], buckets: Sequence[object] = BUCKETS, start: int = 0, epoch: int = 2
) -> list[list[list[int]]]:
    """The micro-batches of each rank from a step on."""
    per_device, accumulation, world = cut
    shapes = [BatchShape(per_device, accumulation, world, rank) for rank in range(world)]
    samplers = [BucketSampler(Mixture([len(buckets)], seed=5), buckets, shape) for shape in shapes]
    made = [list(sampler.micro_batches(epoch, start)) for sampler in samplers]
    assert {len(own) for own in made} == {(samplers[0].steps_in(epoch) - start) * accumulation}
    return made


CUTS = [(4, 1, 1), (2, 3, 2), (1, 2, 4)]


@pytest.mark.parametrize('cut', CUTS)
def test_micro_batches_have_one_bucket_on_all_ranks_and_every_row_comes_once(cut: tuple[int, int, int]) -> None:
    made, seen = ranks(cut), []
    for together in zip(*made, strict=True):
        rows = [row for own in together for row in own]
        assert len({BUCKETS[row] for row in rows}) <= 1
        sizes = [len(own) for own in together]
        assert max(sizes) <= cut[0] and max(sizes) - min(sizes) <= 1
        seen += rows
    assert sorted(seen) == list(range(ROWS))
    small = sum(0 < sum(map(len, together)) < cut[0] * cut[2] for together in zip(*made, strict=True))
    assert small <= len(set(BUCKETS)), 'a bucket leaves one rest at most'


def test_epochs_differ_and_the_ranks_only_share_what_one_would_have() -> None:
    def rows(cut: tuple[int, int, int], **more: int) -> list[list[int]]:
        return [sorted(row for own in together for row in own) for together in zip(*ranks(cut, **more), strict=True)]

    assert rows((4, 2, 1)) == rows((2, 2, 2)) == rows((1, 2, 4))
    assert rows((4, 2, 1)) != rows((4, 2, 1), epoch=3)


@pytest.mark.parametrize('cut', CUTS)
def test_a_resumed_run_goes_on_in_the_same_order(cut: tuple[int, int, int]) -> None:
    for whole, resumed in zip(ranks(cut), ranks(cut, start=3), strict=True):
        assert whole[3 * cut[1] :] == resumed and resumed


@pytest.mark.parametrize('cut', CUTS)
def test_with_one_bucket_the_order_is_that_without_buckets(cut: tuple[int, int, int]) -> None:
    for rank, made in enumerate(ranks(cut, buckets=['one'] * ROWS)):
        plain = IndexSampler(Mixture([ROWS], seed=5), BatchShape(*cut, rank))
        assert made == list(plain.micro_batches(2))


def test_rows_without_a_bucket_are_left_out() -> None:
    buckets = [None, 'a', None, 'a']
    assert sorted(row for micro in ranks((1, 1, 1), buckets)[0] for row in micro) == [1, 3]
    with pytest.raises(DataError, match='not one row'):
        BucketSampler(Mixture([2], seed=0), [None, None], BatchShape(1))


def test_micro_batches_that_are_not_full_are_spread_over_the_epoch() -> None:
    buckets = ['common' if row % 2 else f'rare {row % 40}' for row in range(400)]
    rests = [len(micro) < 16 for epoch in range(10) for micro in ranks((16, 1, 1), buckets, epoch=epoch)[0]]
    epochs = [rests[first : first + len(rests) // 10] for first in range(0, len(rests), len(rests) // 10)]
    thirds = [sum(sum(epoch[first : first + len(epoch) // 3]) for epoch in epochs) for first in (0, 11, 22)]
    assert sum(thirds) == 210 and min(thirds) > 50


# What a look at the header tells is what decoding gives.


def encoded(size: tuple[int, int], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', size, 'red').save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded((40, 20), kind, exif=exif)


IMAGES = {
    'jpeg': encoded((40, 20), 'JPEG'),
    'png': encoded((40, 20), 'PNG'),
    'webp': encoded((7, 300), 'WEBP'),
    'turned jpeg': turned('JPEG'),
    'turned png': turned('PNG'),
    'one pixel': encoded((1, 1), 'PNG'),
}


@pytest.mark.parametrize('name', IMAGES)
@pytest.mark.parametrize('options', [{}, {'max_image_pixels': 100}], ids=['', 'scaled'])
def test_the_header_of_an_image_says_its_size(tmp_path: Path, name: str, options: dict) -> None:
    file = tmp_path / 'image'
    file.write_bytes(IMAGES[name])
    for source in (str(file), IMAGES[name], {'bytes': IMAGES[name], 'path': None}):
        media = Media('image', source, options)
        assert size_of(media) == decode(media).size[::-1]


def test_only_the_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / 'a.png'
    file.write_bytes(encoded((400, 200), 'PNG')[:100])
    assert size_of(Media('image', str(file))) == (200, 400)
    with pytest.raises(SampleError, match='truncated'):
        decode(Media('image', str(file)))


@pytest.mark.parametrize(
    ('content', 'message'), [(b'', 'is empty'), (b'text', 'is not an image'), (None, 'does not exist')]
)
def test_a_broken_image_has_no_size(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(SampleError, match=message):
        size_of(Media('image', str(tmp_path / 'a.png')))


@pytest.mark.parametrize('options', [{'num_frames': 3}, {'fps': 10}, {'num_frames': 2, 'max_frame_pixels': 500}])
def test_the_size_of_a_video_is_that_of_its_picked_frames(options: dict) -> None:
    for rotation in (0, 90):
        media = Media('video', clip([10, 20, 30, 40, 50], rotation=rotation), options)
        assert size_of(media) == decode(media).frames.shape[:3]
    images = Media('video', [encoded((8, 6), 'PNG')] * 4, options)
    assert size_of(images) == decode(images).frames.shape[:3]


def test_the_size_of_audio_is_its_samples() -> None:
    assert size_of(Media('audio', sound(tone(0.5)))) == (8000,)


def test_rows_are_measured_by_their_answers_and_bad_ones_are_told(tmp_path: Path) -> None:
    for name, size in (('wide', (80, 20)), ('square', (31, 30))):
        Image.new('RGB', size).save(tmp_path / f'{name}.png')
    rows = [
        {'prompt': 'A fox', 'image': 'wide.png'},
        {'prompt': 'A fox', 'image': 'gone.png'},
        {'prompt': 'A fox', 'image': 'square.png'},
        {'prompt': 'A fox', 'image': None},
    ]
    dataset = make_dataset(write_rows(tmp_path / 'rows.jsonl', rows), 'DiffusionDB')
    sizes = bucket_sizes(64**2, 16, 4.0)

    def bucket_of(conversations: list) -> tuple[int, ...]:
        return nearest_bucket(size_of_answer(conversations), sizes)

    buckets, skipped = measure_buckets(dataset, bucket_of, 2)
    assert buckets == [(32, 128), None, (64, 64), None]
    assert [(record.source.rpartition(':')[2], record.reason) for record in skipped] == [
        ('2', f"image '{tmp_path}/gone.png' does not exist."),
        ('4', "column 'image' is null in this row."),
    ]
    assert Counter(buckets)[None] == len(skipped)
    assert math.prod(buckets[0]) == 64**2
