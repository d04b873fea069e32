"""Tiny models learn to make clips and tones: what prompts name by captions, what they leave open by DPO and GRPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.learning.open_prompts import (
    FILMING,
    SOUNDING,
    Lesson,
    prefer,
    reward,
    right,
    share_of_preferred,
    taught,
)

pytestmark = pytest.mark.timeout(900)
LESSONS = [FILMING, SOUNDING]


def named(value: Any) -> str | None:
    """The name of a lesson in those of tests."""
    return value.media.kind if type(value) is Lesson else None


@pytest.mark.parametrize('lesson', [pytest.param(FILMING, marks=pytest.mark.extended), SOUNDING], ids=named)
def test_what_a_prompt_names_is_made(shared_cache: Path, lesson: Lesson) -> None:
    """Chance is a quarter."""
    assert right(lesson, taught(lesson, shared_cache) / 'model') >= 0.9


@pytest.mark.extended
@pytest.mark.parametrize('lesson', LESSONS, ids=named)
@pytest.mark.parametrize(('go_on', 'more', 'held'), [(prefer, 0.3, 0.8), (reward, 0.4, 0.7)])
def test_what_a_prompt_leaves_open_is_learned(
    shared_cache: Path, tmp_path: Path, lesson: Lesson, go_on: Any, more: float, held: float
) -> None:
    """From pairs or rewards; prompts that name something are followed as before."""
    model = taught(lesson, shared_cache) / 'model'
    before, after = share_of_preferred(lesson, model), go_on(lesson, model, tmp_path)
    assert share_of_preferred(lesson, after) >= before + more
    assert right(lesson, after) >= held
