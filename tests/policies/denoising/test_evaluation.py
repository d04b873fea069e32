"""Evaluations of draws: levels evenly spaced, noise that hangs on the row alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.noise import Noise
from tests.policies.denoising.toy import ToySpec, row

GRID = 4


@pytest.mark.parametrize(
    ('process', 'levels'),
    [('flow', [0.125, 0.375, 0.625, 0.875]), ('epsilon', [125.0, 375.0, 625.0, 875.0])],
)
def test_each_response_is_scored_at_the_same_levels(process: str, levels: list[float]) -> None:
    collate = DenoisingCollator(ToySpec(process), Noise(noise_offset=0.1), grid=GRID)
    rows = [row(0, responses=2), row(1, responses=1, draws=3)]
    batch = collate(rows)
    assert batch.inputs.level.tolist() == levels * 3
    assert batch.weights.tolist() == [1 / GRID] * 12 and batch.segments.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    target = batch.inputs.target.unflatten(0, (3, GRID))
    clean = torch.stack([piece.media['latents'] for example in rows for piece in example.responses]).float()
    noise = target + clean[:, None] if process == 'flow' else target
    # Both answers of a row meet the same noise, another at each level, and another row another one.
    torch.testing.assert_close(noise[0], noise[1])
    assert not any(torch.allclose(noise[0, 0], other) for other in (noise[0, 1], noise[2, 0]))


def test_neither_seed_nor_epoch_nor_cut_changes_what_is_scored() -> None:
    wanted = DenoisingCollator(ToySpec(), grid=GRID)([row(0), row(1)]).inputs
    collate = DenoisingCollator(ToySpec(), Noise(shift=5.0), seed=7, grid=GRID)
    cut = [collate([replace(row(number), epoch=3)]).inputs for number in range(2)]
    for name in ('sample', 'target', 'level'):
        assert torch.equal(torch.cat([getattr(own, name) for own in cut]), getattr(wanted, name))
    trained = [replace(collate, grid=None)([replace(row(0), epoch=epoch)]).inputs.level for epoch in range(2)]
    assert not torch.equal(*trained)


def test_pieces_that_are_not_trained_stay_so() -> None:
    example = row(0)
    example.responses[1].weights = torch.zeros(1)
    batch = DenoisingCollator(ToySpec(), grid=GRID)([replace(example, unmatched=row(1).responses[0])])
    assert batch.segments.tolist() == [0] * GRID and len(batch.unmatched.weights) == GRID
