"""A policy whose units are no tokens: it places points in the plane, with a Gaussian around what its prompt says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch, Cost, Example, Piece, Scored, Skipped

FEATURES = 3


@dataclass
class PointInputs:
    """The features of the prompt of each unit `(N, FEATURES)`, and its point `(N, 2)`."""

    features: Tensor
    points: Tensor


@dataclass(frozen=True)
class PointCollator:
    """Puts the points with a weight behind each other."""

    layout: str = 'points'

    def cost(self, example: Example) -> Cost:
        units = sum(map(len, example.responses))
        return Cost(units, 1, float(units))

    def size(self, examples: Sequence[Example]) -> int:
        return sum(self.cost(example).size for example in examples)

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        owners = [number for number, example in enumerate(examples) for _ in example.responses]
        pieces = [piece for example in examples for piece in example.responses]
        used = [piece.weights > 0 for piece in pieces]
        counts = torch.tensor([int(mask.sum()) for mask in used], dtype=torch.long)
        features = [examples[owner].prompt.media['features'] for owner in owners]
        names = (
            [name for name in pieces[0].per_unit if all(name in piece.per_unit for piece in pieces)] if pieces else []
        )
        others = [
            replace(item, responses=[item.unmatched], unmatched=None) for item in examples if item.unmatched is not None
        ]
        return Batch(
            inputs=PointInputs(
                torch.cat([torch.zeros(0, FEATURES), *features]).repeat_interleave(counts, 0),
                _joined([piece.media['points'] for piece in pieces], used, (2,)),
            ),
            segments=torch.arange(len(pieces)).repeat_interleave(counts),
            weights=_joined([piece.weights for piece in pieces], used),
            num_responses=len(pieces),
            examples_of_responses=torch.tensor(owners, dtype=torch.long),
            sources=[example.source for example in examples],
            metas=[example.meta for example in examples],
            skipped=list(skipped),
            unmatched=self(others) if others else None,
            per_unit={name: torch.cat([piece.per_unit[name] for piece in pieces]) for name in names},
            stats={'examples': len(examples), 'units': int(counts.sum())},
        )


def _joined(tensors: list[Tensor], used: list[Tensor], shape: tuple[int, ...] = ()) -> Tensor:
    kept = (tensor[mask] for tensor, mask in zip(tensors, used, strict=True))
    return torch.cat([torch.zeros(0, *shape), *kept])


class GaussianPolicy(nn.Module):
    """The log-density of each point under a Gaussian whose mean is linear in the features of its prompt."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Linear(FEATURES, 2)
        self.model.log_scale = nn.Parameter(torch.randn(2, generator=generator) * 0.3)
        with torch.no_grad():
            for parameter in (self.model.weight, self.model.bias):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.collate = PointCollator()
        self.dtype = dtype
        self._temperature = 1.0
        self.to(dtype)

    def forward(self, batch: Batch, *, entropy: bool = False, bootstrap: bool = False) -> Scored:
        if bootstrap:
            raise ModelError('no critic')
        scale = self.model.log_scale.exp() * self._temperature**0.5
        off = (batch.inputs.points.to(self.dtype) - self.model(batch.inputs.features.to(self.dtype))) / scale
        values = (-0.5 * off.square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        spread = (scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return Scored(values, spread.expand(len(values)) if entropy else None)

    def check(self, module: Any, device: torch.device) -> None:
        batch = self.collate(
            [Example(Piece(torch.zeros(0), torch.zeros(0), {'features': torch.ones(1, FEATURES)}), [])]
        )
        if len(module(batch.to(device)).values):
            raise ModelError('something of nothing')

    def set_temperature(self, temperature: float, of_media: Any = None) -> None:
        """The density to the power of `1 / temperature`, made to be one again."""
        self._temperature = temperature
