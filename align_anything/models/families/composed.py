"""Composed models: encoders of media, projectors and a language model (docs/composed.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from align_anything.core.types import MediaKind
from align_anything.models import structure
from align_anything.models.composed.configuration_composed import WAVE_ENCODERS
from align_anything.models.composed.register import register
from align_anything.models.family import FamilySpec
from align_anything.models.tower_calls import Item, TowerCalls

register()


class AccustomedComposedModel:
    """Joined with the class of the checkpoint, which may come with its own code."""


class ComposedCalls(TowerCalls):
    """Calls whose media may be of other lengths: what one of them lacks beside the others is left out of it."""

    def __init__(self, cuts: bool) -> None:
        """`cuts`: whether the encoders take audio as long as it is, so that padding may go."""
        super().__init__()
        self.cuts = cuts

    def items(self, tensors: Mapping[str, Tensor]) -> list[Item]:
        """Returns the items of a call, in order, without padding behind them."""
        items = super().items(tensors)
        if not self.cuts:
            return items
        for item in items:
            for ending in ('', '_2'):
                if f'mask{ending}' in item:
                    length = int(item[f'mask{ending}'].sum())
                    item |= {name: item[name][:, :length] for name in (f'values{ending}', f'mask{ending}')}
        return items

    def joined(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Returns one call for several items, or the features of several as one, filled up with zeros."""
        joined = {}
        for name in items[0]:
            rows = [item[name] for item in items]
            longest = max(row.shape[1] for row in rows) if rows[0].ndim > 1 else 0
            joined[name] = torch.cat([_filled(row, longest) for row in rows])
        return joined


def _filled(row: Tensor, length: int) -> Tensor:
    if row.ndim < 2 or row.shape[1] == length:
        return row
    return torch.cat([row, row.new_zeros(row.shape[0], length - row.shape[1], *row.shape[2:])], dim=1)


class ComposedSpec(FamilySpec):
    """The default rules; what the model reads stands in its configuration."""

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds of media that the checkpoint was composed for, but those that come as vectors."""
        return frozenset(kind for kind, part in self.config.media.items() if not part.get('precomputed_dim'))

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the language model can compute."""
        return structure.layouts(self.config.text_config)

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of the towers are split into single media."""
        encoders = self.config.media.get('audio', {}).get('encoders', [])
        cuts = all(encoder['config']['model_type'] in WAVE_ENCODERS for encoder in encoders)
        return ComposedCalls(cuts=component == 'audio_tower' and cuts)


MODEL, SPEC = AccustomedComposedModel, ComposedSpec
