"""Vectors in the place of media: every form that a row may bring them in, and broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from align_anything.core.errors import SampleError
from align_anything.core.store import TensorStore
from align_anything.core.types import Embedding, Media
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode, decode_conversations, describe, make_media

VECTOR = [0.5, -1.0, 2.0]
TURNS = [{'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': 'A dog.'}]


def decoded(meta: dict[str, Any], turns: list[dict[str, Any]] = TURNS, **more: Any) -> list[Any]:
    """The media of a row with its `meta`, decoded."""
    (conversation,) = decode_conversations([bind_media(turns, meta, **more)])
    return [part[part['type']] for message in conversation for part in message['content'] if part['type'] != 'text']


@pytest.fixture
def file(tmp_path: Path) -> Path:
    numpy.save(tmp_path / 'v.npy', numpy.array([VECTOR], numpy.float64))
    return tmp_path / 'v.npy'


def test_every_form_gives_the_same_vector(file: Path) -> None:
    forms: list[Any] = [VECTOR, {'embedding': VECTOR}, {'embedding': numpy.array([VECTOR])}]
    forms += [str(file), {'embedding': str(file)}, {'embedding': file.read_bytes()}]
    forms += [{'embedding': VECTOR, 'bytes': None, 'path': None}, [VECTOR], Media('image', VECTOR)]
    for form in forms:
        (item,) = decoded({'image': form})
        assert type(item) is Embedding and item.values.dtype == numpy.float32, form
        assert item.values.tolist() == VECTOR, form


def test_several_vectors_go_to_their_placeholders_and_paths_start_in_their_folder(file: Path) -> None:
    turns = [{'role': 'user', 'content': '<video> or <video>?'}, TURNS[1]]
    one, other = decoded({'videos': [[1, 2], 'v.npy']}, turns, folders={'video': str(file.parent)})
    assert one.values.tolist() == [1.0, 2.0] and other.values.tolist() == VECTOR
    (heard,) = decoded({'audio': {'embedding': 'v.npy'}}, folders={'audio': str(file.parent)})
    assert heard.values.tolist() == VECTOR


def test_options_of_the_run_are_for_other_media() -> None:
    options = {'video': {'num_frames': 4, 'audio': True}, 'audio': {'long_audio': 'split', 'max_seconds': 1}}
    for kind in ('video', 'audio'):
        (item,) = decoded({kind: {'embedding': VECTOR}}, options=options)
        assert item.values.tolist() == VECTOR


def test_a_list_of_numbers_is_no_sound() -> None:
    with pytest.raises(SampleError, match='has no rate'):
        decoded({'audio': VECTOR})


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ({'embedding': [1.0, float('nan')]}, 'not finite'),
        ({'embedding': [[1.0, 2.0], [3.0, 4.0]]}, r'shape \(2, 2\) is no vector'),
        ({'embedding': ['a', 'b']}, 'is no vector of numbers'),
        ({'embedding': []}, r'shape \(0,\) is no vector'),
        ({'embedding': VECTOR, 'path': 'a.png'}, "has 'path' too"),
        (Media('image', VECTOR, {'max_image_pixels': 10}), "has 'max_image_pixels' too"),
        ({'embedding': 'nowhere.npy'}, "image 'nowhere.npy' does not exist"),
        ({'embedding': 'https://a.b/c.npy'}, 'such URLs are off'),
    ],
)
def test_what_is_no_vector_costs_its_row_and_says_why(source: Any, words: str) -> None:
    with pytest.raises(SampleError, match=words):
        decoded({'image': source})


def test_files_that_would_run_code_or_hold_something_else_are_refused(tmp_path: Path) -> None:
    numpy.save(tmp_path / 'objects.npy', numpy.array([{'a': 1}]), allow_pickle=True)
    (tmp_path / 'text.npy').write_text('1, 2, 3')
    for name in ('objects.npy', 'text.npy'):
        with pytest.raises(SampleError, match=rf'{name}. is no \.npy file of numbers'):
            decode(make_media('video', str(tmp_path / name)))


def test_they_are_named_and_told_apart(file: Path, tmp_path: Path) -> None:
    assert describe(make_media('image', VECTOR)) == 'image embedding'
    assert describe(make_media('image', str(file))) == f"image embedding '{file}'"
    store = TensorStore(tmp_path / 'store', 'test', 'x', 'setting')
    keys = {store.key(make_media('image', source)) for source in (VECTOR, [0.5, -1.0, 2.5], str(file))}
    assert len(keys) == 3
    before = store.key(make_media('image', str(file)))
    numpy.save(file, numpy.zeros(64))
    assert store.key(make_media('image', str(file))) != before
