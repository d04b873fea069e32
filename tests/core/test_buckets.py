"""Buckets are of the wanted area, and media go to the nearest."""

from __future__ import annotations

import math

import pytest

from align_anything.core.buckets import bucket_sizes, clip_sizes, frame_counts, histogram, nearest_bucket
from align_anything.core.errors import SampleError, SettingsError


@pytest.mark.parametrize(('area', 'multiple', 'ratio'), [(512**2, 64, 2.0), (1024**2, 32, 3.0), (48**2, 16, 1.0)])
def test_sizes_keep_the_area_the_multiple_and_the_ratio(area: int, multiple: int, ratio: float) -> None:
    sizes = bucket_sizes(area, multiple, ratio)
    assert len(set(sizes)) == len(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes), 'tall and wide alike'
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        step = max(multiple, math.isqrt(area) / 16 * 1.5)
        assert height * width <= area < (max(height, width) + step) * (min(height, width) + multiple)
        assert max(height, width) <= ratio * min(height, width)
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios) and 1.0 in ratios


@pytest.mark.parametrize('multiple', [8, 16, 64])
def test_the_sizes_are_those_of_sdxl(multiple: int) -> None:
    wide = {(1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1344)}
    assert set(bucket_sizes(1024**2, multiple)) == wide | {size[::-1] for size in wide}


def test_a_resolution_that_is_no_multiple_of_the_step_has_its_square() -> None:
    assert (1040, 1040) in bucket_sizes(1040**2, 16)


def test_a_size_that_cannot_be_is_refused() -> None:
    for wanted in ((100, 16, 2.0), (10_000, 16, 0.5), (10_000, 0, 2.0)):
        with pytest.raises(SettingsError, match='raise the resolution'):
            bucket_sizes(*wanted)
    with pytest.raises(SettingsError, match='has none'):
        frame_counts(0, 4)


def test_the_nearest_bucket_has_the_nearest_ratio_whatever_the_size() -> None:
    sizes = bucket_sizes(512**2, 64)
    for height, width in sizes:
        for factor in (0.1, 1, 7):
            assert nearest_bucket((round(height * factor), round(width * factor)), sizes) == (height, width)
    assert nearest_bucket((10, 1000), sizes) == sizes[-1]
    assert nearest_bucket((1, 1), sizes) == (512, 512)
    wide, tall = nearest_bucket((300, 420), sizes), nearest_bucket((420, 300), sizes)
    assert wide == tall[::-1]
    assert nearest_bucket((9, 10), [(64, 64), (128, 128)]) == (128, 128), 'of equally near ones the larger'
    with pytest.raises(SampleError, match='nothing to see'):
        nearest_bucket((0, 5), sizes)


def test_a_clip_has_the_most_frames_that_it_can_fill() -> None:
    assert frame_counts(17, 4) == [1, 5, 9, 13, 17]
    assert frame_counts(16, 8) == [1, 9]
    sizes = clip_sizes([5, 17], [(64, 64), (32, 128)])
    assert nearest_bucket((16, 100, 90), sizes) == (5, 64, 64)
    assert nearest_bucket((17, 30, 100), sizes) == (17, 32, 128)
    assert nearest_bucket((900, 30, 100), sizes) == (17, 32, 128)
    with pytest.raises(SampleError, match='has 4 frames, and the shortest bucket takes 5'):
        nearest_bucket((4, 64, 64), sizes)


def test_the_histogram_counts_every_row() -> None:
    text = histogram([(64, 32), (64, 32), (64, 32), (5, 32, 32), None])
    first, second, last = text.splitlines()
    assert first.split() == ['32x64', '3', '75.0%', '#' * 40]
    assert second.split() == ['32x32x5', '1', '25.0%', '#' * 14]
    assert last.split() == ['unusable', '1']
    assert histogram([None]).split() == ['unusable', '1']
