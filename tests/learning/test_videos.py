"""Tiny models of the families that read videos learn what happens in them, by the trainer that users call.

A bar moves to the left or to the right; or, for families whose towers see one frame at a time, which need longer for
that, the light grows or fades. Chance is 1/2. A video and its reverse have the same frames: the answer lies in their
order alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import first_of
from tests.learning.lessons import changes, directions, turned_round
from tests.learning.school import examine, teach

PAIR = PAIRS['text_video_to_text']

STEPS = {
    'qwen2_vl': 40,
    'qwen2_5_vl': 40,
    'qwen3_vl': 40,
    'qwen3_omni_moe_thinker': 60,
    'llava_next_video': 40,
    'llava_onevision': 40,
    'smolvlm': 40,
    # No file of its own: the default rules.
    'internvl': 40,
}


@pytest.mark.parametrize('family', first_of(STEPS, 'qwen2_5_vl'))
def test_a_family_learns_the_order_of_frames(tmp_path: Path, family: str) -> None:
    lesson = directions if family.startswith('qwen') else changes
    learned = teach(tmp_path, family, lesson(tmp_path, 'train', 96), PAIR, max_steps=STEPS[family])
    asked = lesson(tmp_path, 'held-out', 24)
    examine(*learned, asked, [turned_round(question) for question in asked])
