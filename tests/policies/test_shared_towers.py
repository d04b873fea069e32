"""Ranks that share rows compute a share of the media each, with the gradients of one rank; or all of them, as told."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from align_anything.models.tower_calls import TowerCalls, TowerOutput
from align_anything.policies.token.sequence_parallel import Share
from align_anything.policies.token.shared_towers import SharedTowers
from tests.harness.ranks import run_ranks


class Tower(nn.Module):
    """Pictures `(pictures, pixels, 2)` to features `(pictures, pixels, 3)`; `scale` is for all pictures at once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3).double()
        self.rows: list[int] = []

    def forward(self, pictures: Tensor, scale: Tensor | None = None, **more: object) -> TowerOutput:
        self.rows.append(len(pictures))
        features = self.linear(pictures).tanh()
        return TowerOutput(last_hidden_state=features if scale is None else features * scale)


def pictures(number: int) -> Tensor:
    return torch.linspace(-1, 1, number * 8, dtype=torch.float64).view(number, 4, 2)


def computed(rank: int, number: int, scale: float | None, size: int) -> tuple[Tensor, list[Tensor], list[int], str]:
    """What comes out, the gradients where a rank needs features as its number says, what it ran for, and its log."""
    torch.manual_seed(0)
    model = nn.ModuleDict({'tower': Tower()})
    spec = SimpleNamespace(components={'vision_tower': ['tower']}, tower_calls=lambda component: TowerCalls())
    share, told = Share.of(size), []
    logging.getLogger('align_anything.policies.token.shared_towers').addFilter(
        lambda record: told.append(record.getMessage()) is None
    )
    towers = SharedTowers(model, spec, share)
    given = {} if scale is None else {'scale': torch.tensor(scale)}
    with towers.while_sharing(share):
        # What is no plain value is for the language model.
        found = model['tower'](pictures(number), plan=object(), **given).last_hidden_state
    weights = torch.arange(found.numel()).view(found.shape) % 5 - 2.0
    # The ranks' losses add up to that of one.
    (found * weights * (3 if size == 1 else rank + 1)).sum().backward()
    return found.detach(), [one.grad for one in model.parameters()], model['tower'].rows, ' '.join(told)


def test_each_picture_is_computed_once_and_gets_the_gradients_of_all_ranks() -> None:
    for number, rows in ((5, ({3}, {2})), (1, ({1}, {1}))):
        expected, gradients, _, _ = computed(0, number, None, 1)
        ranks = run_ranks(computed, 2, args=(number, None, 2))
        for found, *_ in ranks:
            torch.testing.assert_close(found, expected)
        assert sorted(tuple(ran) for *_, ran, _ in ranks) == sorted(tuple(one) for one in rows)
        for wanted, *parts in zip(gradients, *(own for _, own, _, _ in ranks), strict=True):
            torch.testing.assert_close(sum(parts), wanted)


def test_calls_that_cannot_be_split_are_computed_whole_and_said() -> None:
    expected, *_ = computed(0, 3, 2.0, 1)
    for found, _, ran, told in run_ranks(computed, 2, args=(3, 2.0, 2)):
        torch.testing.assert_close(found, expected)
        assert ran == [3]
        assert "calls of 'tower' cannot be split into single media" in told
