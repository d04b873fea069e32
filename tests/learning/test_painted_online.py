"""A tiny flow model learns from rewards alone which colour to paint, and keeps what it could paint before.

Every second prompt names a colour and is worth something in that colour alone, the others name none and want red: a
model that paints all things red, or nothing that is a shape, would not do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.testing import shapes
from scripts.demo_paint import painting
from tests.harness.pairwise import first_of
from tests.learning.painted import NAMED, PLAIN, colours_asked_for, share_of, taught, train
from tests.trainers.runs import write_rows

pytestmark = pytest.mark.timeout(900)
ONLINE: dict[str, Any] = {
    'template': 'Prompts',
    'train_template_kwargs': '{keep_columns: True}',
    'num_generations': 8,
    'per_device_prompt_batch_size': 6,
    'per_device_train_batch_size': 48,
    'rollout_steps': 8,
    'use_lora': True,
    'lora_r': 8,
    'lora_alpha': 16,
    'learning_rate': 2e-3,
    'lr_scheduler_type': 'constant',
}
HOW: dict[str, tuple[str, Mapping[str, Any]]] = {
    'grpo': ('grpo', {'max_steps': 25}),
    'window': ('grpo', {'sde_window': 2, 'max_steps': 30}),
    'nft': ('nft', {'draws_per_sample': 4, 'max_steps': 25}),
}
"""Algorithms and their settings, by what is special."""
RISE, KEPT, SHAPELESS = 0.5, 0.75, 0.15
"""By how much the reward of prompts without a colour rises at least, the share of colours asked for at least, and by
how much the share of shapes asked for falls at most."""


@pytest.mark.parametrize('how', first_of(HOW, 'nft'))
def test_rewards_for_a_colour_are_learned_and_nothing_else_is_lost(
    shared_cache: Path, tmp_path: Path, how: str
) -> None:
    name, settings = HOW[how]
    model, rows = taught(shared_cache) / 'model', write_rows(tmp_path / 'prompts.jsonl', painting.prompts())
    reward = f'[{painting.__file__}:painted_as_wanted]'
    adapter = train(name, tmp_path / 'run', model, rows, **ONLINE, **settings, reward_functions=reward)
    named, plain = painted(model)
    assert share_of(painting.LIKED, plain) <= 0.4
    named_after, plain_after = painted(model, adapter)
    assert share_of(painting.LIKED, plain_after) >= share_of(painting.LIKED, plain) + RISE
    assert colours_asked_for(named_after) >= KEPT
    assert shapes_asked_for(named_after, plain_after) >= shapes_asked_for(named, plain) - SHAPELESS


def painted(model: Path, adapter: Path | None = None) -> tuple[Sequence[Image.Image], Sequence[Image.Image]]:
    """Pictures of `NAMED` and of `PLAIN`."""
    pictures = shapes.paint(model, [*NAMED, *PLAIN], adapter=adapter)
    return pictures[: len(NAMED)], pictures[len(NAMED) :]


def shapes_asked_for(named: Sequence[Image.Image], plain: Sequence[Image.Image]) -> float:
    """The share of pictures of `NAMED` and `PLAIN` that show the shape asked for."""
    shown = zip([*named, *plain], [*NAMED, *PLAIN], strict=True)
    return sum(shapes.shape_of(picture) == prompt.split()[-1] for picture, prompt in shown) / len([*NAMED, *PLAIN])
