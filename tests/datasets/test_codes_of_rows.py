"""Media that rows bring as codes: read, checked, the same object wherever they stand, and kept like other media."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from align_anything.core.errors import SampleError
from align_anything.core.store import identity
from align_anything.core.types import CodedMedia, Media, MediaKind
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.media import decode, decode_conversations
from align_anything.datasets.template_registry import make_formatter


def read(kind: MediaKind, **source: Any) -> CodedMedia:
    return decode(Media(kind, source))


@pytest.mark.parametrize(
    ('kind', 'codes', 'shape'),
    [
        ('image', [[[1, 2, 3], [4, 5, 6]]], (1, 2, 3)),
        ('image', [[1, 2, 3], [4, 5, 6]], (1, 2, 3)),
        ('image', [[[1, 2]], [[3, 4]]], (2, 1, 2)),
        ('audio', [1, 2, 3], (1, 3)),
        ('audio', [[1, 2, 3], [4, 5, 6]], (2, 3)),
        ('video', [[[1, 2]], [[3, 4]]], (1, 2, 1, 2)),
        ('video', [[[[1, 2]], [[3, 4]]]], (1, 2, 1, 2)),
    ],
)
def test_codes_have_their_books_first(kind: MediaKind, codes: list, shape: tuple) -> None:
    for given in (codes, numpy.array(codes, dtype=numpy.uint16)):
        coded = read(kind, codes=given)
        assert type(coded) is CodedMedia and coded.kind == kind and coded.codec == ''
        assert coded.codes.dtype == torch.int64 and tuple(coded.codes.shape) == shape
        assert coded.codes.flatten().tolist() == numpy.array(codes).flatten().tolist()


def test_codes_in_one_row_fill_their_grid_with_books_side_by_side() -> None:
    coded = read('image', codes=list(range(12)), size=[2, 3], codec='abc')
    assert coded.codec == 'abc'
    assert coded.codes.tolist() == [[[0, 2, 4], [6, 8, 10]], [[1, 3, 5], [7, 9, 11]]]
    assert read('audio', codes=[1, 2, 3, 4], size=[4]).codes.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ('kind', 'source', 'message'),
    [
        (
            'image',
            {'codes': [1, 2, 3]},
            'codes of shape (3,). They should be (books, height, width)',
        ),
        ('audio', {'codes': [[[1]]]}, 'They should be (books, frames)'),
        ('image', {'codes': [[1, 2], [3]]}, 'rows of codes that differ in length'),
        ('image', {'codes': []}, 'has no codes'),
        ('audio', {'codes': [1.5]}, 'no whole numbers (float64)'),
        ('audio', {'codes': [True]}, 'no whole numbers (bool)'),
        ('audio', {'codes': [2**70]}, 'no whole numbers (object)'),
        ('audio', {'codes': ['1']}, 'no whole numbers'),
        ('audio', {'codes': [3, -1]}, 'the code -1; codes count from 0'),
        ('image', {'codes': [1, 2, 3], 'size': [2, 2]}, 'do not fill a grid of [2, 2]'),
        ('image', {'codes': [[1, 2]], 'size': [1, 2]}, 'do not fill a grid of [1, 2] in one row'),
        ('image', {'codes': [1, 2], 'size': [2]}, 'it should be [height, width]'),
        ('image', {'codes': [1, 2], 'size': '12'}, 'it should be [height, width]'),
        ('image', {'codes': [1, 2], 'size': [0, 2]}, 'it should be [height, width]'),
        ('image', {'codes': [[1]], 'codec': 3}, 'has 3 as the fingerprint of its codec'),
        ('image', {'codes': [[1]], 'colour': 'red'}, 'has colour beside its codes'),
    ],
)
def test_what_is_no_codes_is_refused(kind: MediaKind, source: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        decode(Media(kind, source))
    assert message in str(caught.value)


def test_equal_codes_of_two_conversations_are_one_medium() -> None:
    row = {
        'chosen': [*turns([[500, 600]]), {'role': 'assistant', 'content': 'A'}],
        'rejected': [*turns([[500, 600]]), {'role': 'assistant', 'content': 'B'}],
    }
    better, worse, _ = BoundTemplate(make_formatter('Preference')).format_preference_sample(row)
    decoded = decode_conversations([better, worse])
    one, other = (conversation[0]['content'][0]['image'] for conversation in decoded)
    assert one is other and one.codes.tolist() == [[[500, 600]]]


def turns(codes: list) -> list[dict[str, Any]]:
    # Parsed anew for each conversation, as JSON gives them: no number is the same object.
    numbers = [[int(str(code)) for code in line] for line in codes]
    return [{'role': 'user', 'content': [{'type': 'image', 'image': {'codes': numbers}}]}]


def test_long_audio_that_is_codes_stays_whole() -> None:
    media = Media('audio', {'codes': [1, 2, 3]}, {'max_seconds': 1, 'long_audio': 'split', 'rate': 16000})
    ((message,),) = decode_conversations([[{'role': 'user', 'content': [{'type': 'audio', 'audio': media}]}]])
    assert [part['audio'].codes.tolist() for part in message['content']] == [[[1, 2, 3]]]


def test_codes_are_known_by_their_content_and_codec() -> None:
    sources = [{'codes': [[1, 2]]}, {'codes': [[1, 2]], 'codec': 'abc'}, {'codes': [[1, 3]]}]
    known = [str(identity(Media('image', source))) for source in sources]
    assert len(set(known)) == 3 and known[0] == str(identity(Media('image', {'codes': [[1, 2]]})))
