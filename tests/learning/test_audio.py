"""Tiny models of the families that hear learn to tell tones apart, by the trainer that users call.

Chance is 1/3: low, middle, high, of any loudness and length.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.trainers.pairs import PAIRS
from tests.learning.lessons import exchanged, pitches, rotated
from tests.learning.school import examine, teach

PAIR = PAIRS['text_audio_to_text']

STEPS = {'qwen2_audio': 60}


@pytest.mark.parametrize('family', STEPS)
def test_a_family_learns_to_hear(tmp_path: Path, family: str) -> None:
    learned = teach(tmp_path, family, pitches(tmp_path, 'train', 96), PAIR, max_steps=STEPS[family], learning_rate=3e-3)
    asked = pitches(tmp_path, 'held-out', 24)
    examine(*learned, asked, exchanged(asked, rotated(asked), 'audio'))
