"""What is declared of the tokens that a language model gets for the codes of media."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.errors import ModelError
from align_anything.models.any_model import AnyModel
from align_anything.models.codecs.base import codec_rules
from align_anything.models.media_tokens import add_media_tokens, only_size, untaught_kinds
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.codecs import SIDE, make_codec

Tiny = Callable[[str], Path]


def declared(folder: Path) -> dict[str, object]:
    return json.loads((folder / 'config.json').read_text())['media_codes']['image']


def test_the_one_size_that_a_codec_makes_of_all_pictures_is_declared(tiny: Tiny, tmp_path: Path) -> None:
    codec = make_codec('janus_vqgan', tmp_path / 'codec')
    side = SIDE // 4
    assert only_size(codec_rules(codec)) == (side, side)
    assert declared(add_media_tokens(tiny('qwen2'), {'image': codec}, tmp_path / 'model'))['size'] == [side, side]
    with pytest.raises(ModelError, match=rf'makes \[{side}, {side}\] codes of every image, not \[16, 16\]'):
        add_media_tokens(tiny('qwen2'), {'image': codec}, tmp_path / 'other', sizes={'image': (16, 16)})
    assert not (tmp_path / 'other').exists()


def test_a_codec_of_pictures_of_any_shape_declares_none_unless_told(tiny: Tiny, tmp_path: Path) -> None:
    codec = make_codec('emu3_vqgan', tmp_path / 'codec')
    config = json.loads((codec / 'config.json').read_text())
    (codec / 'config.json').write_text(json.dumps({key: config[key] for key in config if key != 'size'}))
    assert 'size' not in declared(add_media_tokens(tiny('qwen2'), {'image': codec}, tmp_path / 'any'))
    told = add_media_tokens(tiny('qwen2'), {'image': codec}, tmp_path / 'told', sizes={'image': (6, 4)})
    assert declared(told)['size'] == [6, 4]


def test_codes_that_nothing_has_told_apart_yet_are_found(tiny: Tiny, tmp_path: Path) -> None:
    folder = add_media_tokens(tiny('qwen2'), {'image': make_codec('janus_vqgan', tmp_path / 'codec')}, tmp_path / 'new')
    spec, embedding = load_spec(folder), AnyModel.from_pretrained(folder).get_input_embeddings().weight.detach()
    assert untaught_kinds(embedding, spec.codes) == ['image']
    ((start, stop),) = spec.codes.kinds['image'].spans
    embedding[stop - 1] += 1
    assert untaught_kinds(embedding, spec.codes) == []
    # Janus has its codes behind the rows of text.
    assert untaught_kinds(embedding[:start], spec.codes) == []
