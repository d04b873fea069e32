"""Tiny models of the families that see and hear learn from both at once, by the trainer that users call.

The answer has a word for what is seen and another for what is heard. Chance is 1/6: two directions, three
pitches. The rows of the run on two ranks show an image, an audio clip, a video, or nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.trainers.pairs import PAIRS
from tests.learning.lessons import (
    colours,
    directions,
    directions_and_pitches,
    exchanged,
    pitches,
    rotated,
    turned_round,
)
from tests.learning.school import examine, teach
from tests.learning.tasks import number_turns, questions

PAIR = PAIRS['any_to_text']

STEPS = {'qwen2_5_omni_thinker': 50}
# `make test` has a lesson for each kind of media.
pytestmark = pytest.mark.extended


@pytest.mark.parametrize('family', STEPS)
def test_a_family_learns_what_takes_eyes_and_ears(tmp_path: Path, family: str) -> None:
    learned = teach(tmp_path, family, directions_and_pitches(tmp_path, 'train', 96), PAIR, max_steps=STEPS[family])
    asked = directions_and_pitches(tmp_path, 'held-out', 24)
    examine(*learned, asked, *(exchanged(asked, rotated(asked), kind) for kind in ('video', 'audio')))


def test_one_run_on_two_ranks_learns_images_audio_and_videos_beside_text(tmp_path: Path) -> None:
    lessons = (colours, pitches, directions)
    texts = [questions(turns)[-1] for turns in number_turns(False, 1)][:48]
    rows = [question for lesson in lessons for question in lesson(tmp_path, 'train', 96)] + texts
    learned = teach(tmp_path, 'qwen2_5_omni_thinker', rows, PAIR, ranks=2, ds_cfgs='ds_z2_config.json', max_steps=160)
    seen, heard, moved = (lesson(tmp_path, 'held-out', 24) for lesson in lessons)
    examine(*learned, seen, exchanged(seen, rotated(seen), 'image'))
    examine(*learned, heard, exchanged(heard, rotated(heard), 'audio'))
    examine(*learned, moved, [turned_round(question) for question in moved])
