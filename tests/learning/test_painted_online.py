"""A tiny flow model learns from rewards alone which colour to paint, and keeps what it could paint before.

Every second prompt names a colour and is worth something in that colour alone, the others name none and want the one
that was painted least often: a model that paints all things in one colour, or no shapes, would not do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image

from align_anything.testing import shapes
from align_anything.testing.tiny import build
from scripts.demo_paint import painting
from tests.harness.pairwise import first_of
from tests.learning import judged, seen
from tests.learning.painted import NAMED, PLAIN, RANKED, colours_asked_for, share_of, taught, train
from tests.trainers.runs import lines, write_rows

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
    'window': ('grpo', {'sde_window': 2, 'sde_window_range': '[0, 2]', 'max_steps': 40}),
    'all steps': ('grpo', {'max_steps': 40}),
    'nft': ('nft', {'draws_per_sample': 4, 'learning_rate': 1.5e-3, 'max_steps': 30}),
}
"""Algorithms and their settings, by what is special."""
RISE, KEPT, SHAPELESS = 0.5, 0.75, 0.15
"""By how much the reward of prompts without a colour rises at least, the share of colours asked for at least, and by
how much the share of shapes asked for falls at most."""
LIMIT = -0.5
"""What a picture may cost in the mean; a cost model puts zero between what is safe and what is not."""
COSTS: dict[str, Any] = {
    **{key: value for key, value in RANKED.items() if not key.startswith('eval_')},
    'template': f'{judged.__file__}:Judged',
}


@pytest.mark.parametrize('how', first_of(HOW, 'window'))
def test_rewards_for_a_colour_are_learned_and_nothing_else_is_lost(
    shared_cache: Path, tmp_path: Path, how: str
) -> None:
    name, settings = HOW[how]
    model = taught(shared_cache) / 'model'
    named, plain = painted(model)
    liked = min(shapes.COLOURS, key=lambda colour: share_of(colour, plain))
    rows = write_rows(tmp_path / 'prompts.jsonl', painting.prompts(liked))
    reward = f'[{painting.__file__}:painted_as_wanted]'
    adapter = train(name, tmp_path / 'run', model, rows, **{**ONLINE, **settings}, reward_functions=reward)
    named_after, plain_after = painted(model, adapter)
    assert share_of(liked, plain_after) >= share_of(liked, plain) + RISE
    assert colours_asked_for(named_after) >= KEPT
    assert shapes_asked_for(named_after, plain_after) >= shapes_asked_for(named, plain) - SHAPELESS


@pytest.mark.extended
def test_rewards_rise_within_a_limit_on_cost(shared_cache: Path, tmp_path: Path) -> None:
    """Red is worth more than yellow, and a cost model, which sees the pictures, was taught to mind red and green."""
    model = taught(shared_cache) / 'model'
    rows = [{'prompt': prompt, 'worth': {'red': 1.0, 'yellow': 0.8}} for prompt in shapes.PLAIN for _ in range(4)]
    settings = {
        **ONLINE,
        'reward_functions': f'[{seen.__file__}:worth]',
        'cost_model_name_or_path': taught_to_mind(('red', 'green'), tmp_path / 'cost'),
        'threshold': LIMIT,
        'lambda_init': 1.0,
        'lambda_max': 3.0,
        'max_steps': 36,
    }
    train('saferlhf', tmp_path / 'run', model, write_rows(tmp_path / 'prompts.jsonl', rows), **settings)
    steps = [record for record in lines(tmp_path / 'run' / 'metrics.jsonl') if 'train/reward' in record]
    (reward, rewarded), (cost, costing) = (
        [fmean(step[f'train/reward/{name}'] for step in part) for part in (steps[:4], steps[-4:])]
        for name in ('worth', 'cost')
    )
    assert cost > LIMIT > costing and steps[-1]['train/mean_cost'] < LIMIT
    assert rewarded >= reward + 0.1


def painted(model: Path, adapter: Path | None = None) -> tuple[Sequence[Image.Image], Sequence[Image.Image]]:
    """Pictures of `NAMED` and of `PLAIN`."""
    pictures = shapes.paint(model, [*NAMED, *PLAIN], adapter=adapter)
    return pictures[: len(NAMED)], pictures[len(NAMED) :]


def shapes_asked_for(named: Sequence[Image.Image], plain: Sequence[Image.Image]) -> float:
    """The share of pictures of `NAMED` and `PLAIN` that show the shape asked for."""
    shown = zip([*named, *plain], [*NAMED, *PLAIN], strict=True)
    return sum(shapes.shape_of(picture) == prompt.split()[-1] for picture, prompt in shown) / len([*NAMED, *PLAIN])


def taught_to_mind(colours: Sequence[str], folder: Path) -> Path:
    """Teaches a tiny model that sees pictures what they cost: some colours are not safe, all others are."""
    safe = [colour for colour in shapes.COLOURS if colour not in colours]
    rows = shapes.write_shape_pairs(folder, 100, preferred=safe)
    start = build('llava', folder / 'start', corpus=[*shapes.NAMED, *shapes.PLAIN])
    return train('cost_model', folder / 'run', start, rows, **COSTS)
