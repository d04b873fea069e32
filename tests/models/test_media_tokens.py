"""Tokens of codecs that a language model gets: what is said of them has to fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import ModelError
from align_anything.models.media_tokens import add_media_tokens


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'sizes': {'image': [4, 4], 'audio': [5]}}, 'size of audio: no codec of audio is given'),
        ({'max_lengths': {'audio': 5}}, 'max_length of audio: no codec of audio is given'),
        ({'around': {'video': ('<v>', '</v>')}}, 'around of video: no codec of video is given'),
        ({'sizes': {'image': [4]}}, 'size: [4] is not 2 numbers of codes'),
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
