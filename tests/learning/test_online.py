"""Tiny models that are often wrong learn the right answers from rewards alone, about text and every kind of media."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.learning.rewarded import learns, taught

__all__ = ['taught']


@pytest.mark.parametrize(('pair', 'name'), [('text_to_text', 'ppo'), ('text_image_to_text', 'grpo')])
def test_rewards_alone_teach_what_is_right(taught: Callable[[str], Path], pair: str, name: str) -> None:
    learns(taught(pair), pair, name)
