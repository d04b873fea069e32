"""What is declared of the tokens that a language model gets for the codes of media."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import codec_rules
from align_anything.models.media_tokens import add_media_tokens, only_size
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


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'sizes': {'image': [4, 4], 'audio': [5]}}, 'size of audio: no codec of audio is given'),
        ({'max_lengths': {'audio': 5}}, 'max_length of audio: no codec of audio is given'),
        ({'around': {'video': ('<v>', '</v>')}}, 'around of video: no codec of video is given'),
        ({'sizes': {'image': [4]}}, 'makes [4, 4] codes of every image, not [4]'),
        ({'sizes': {'image': [4, 4]}, 'max_lengths': {'image': 15}}, '15 is less than the 16 tokens'),
        ({'around': {'image': ('<|image_begin|>', '<|image_begin|>')}}, 'begins with the token that opens image'),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny: Callable[..., Path],
    emitting: Callable[..., Path],
    tmp_path: Path,
    settings: dict[str, Any],
    words: str,
) -> None:
    codecs = {'image': emitting('drawing') / 'codecs' / 'image'}
    with pytest.raises(ModelError) as caught:
        add_media_tokens(tiny('llama'), codecs, tmp_path / 'out', **settings)
    assert words in str(caught.value) and not (tmp_path / 'out').exists()
