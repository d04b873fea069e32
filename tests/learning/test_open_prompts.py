"""Tiny models learn to make clips and tones: what prompts name by captions, what they leave open by DPO and GRPO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.learning.open_prompts import (
    FILMING,
    SOUNDING,
    Lesson,
    learn,
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
    assert right(lesson, taught(lesson, shared_cache) / 'model') >= 0.8


@pytest.mark.extended
@pytest.mark.parametrize('lesson', LESSONS, ids=named)
def test_nothing_is_learned_from_the_captions_of_others(tmp_path: Path, lesson: Lesson) -> None:
    assert right(lesson, learn(lesson, tmp_path, shuffled=True)) <= 0.45


@pytest.mark.extended
@pytest.mark.parametrize(('go_on', 'more'), [(prefer, 0.3), (reward, 0.4)], ids=['dpo', 'grpo'])
@pytest.mark.parametrize('lesson', LESSONS, ids=named)
def test_what_a_prompt_leaves_open_is_learned(
    shared_cache: Path, tmp_path: Path, lesson: Lesson, go_on: Callable[..., Path], more: float
) -> None:
    """From pairs or rewards; prompts that name something are followed as before."""
    model = taught(lesson, shared_cache) / 'model'
    before, after = share_of_preferred(lesson, model), go_on(lesson, model, tmp_path)
    assert share_of_preferred(lesson, after) >= before + more
    assert right(lesson, after) >= 0.75
