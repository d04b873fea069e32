"""The same lessons with vLLM, whose copy of the policy generates after each of its updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.warm import import_vllm
from tests.learning.rewarded import learns, taught

__all__ = ['taught']
# `make test` has this lesson without vLLM, and what vLLM samples in tests/rollouts.
pytestmark = pytest.mark.extended


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


@pytest.mark.parametrize(
    ('pair', 'name'),
    [
        ('text_to_text', 'ppo_vllm'),
        ('text_image_to_text', 'grpo'),
        ('text_to_text', 'grpo'),
        ('text_image_to_text', 'ppo_vllm'),
        ('text_video_to_text', 'grpo'),
        ('text_video_to_text', 'ppo_vllm'),
    ],
)
def test_rewards_alone_teach_what_is_right(taught: Callable[[str], Path], tmp_path: Path, pair: str, name: str) -> None:
    learns(taught(pair), tmp_path, pair, name, use_vllm=True, vllm_gpu_memory_utilization=0.05)
