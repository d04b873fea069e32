"""What tests of models share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.testing.tiny.encoders import ENCODERS, build_encoder
from tests.harness.once import once


@pytest.fixture(scope='session')
def parts(tiny: Callable[..., Path], shared_cache: Path) -> Callable[[str], Path]:
    """`parts('clip')` is the folder of a tiny encoder, `parts('llama')` of a tiny language model."""

    def part(name: str) -> Path:
        if name not in ENCODERS:
            return tiny(name)
        return once(shared_cache, f'part-{name}', lambda folder: build_encoder(name, folder))

    return part
