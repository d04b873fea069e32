"""Composed models: encoders of media, projectors and a language model (docs/composed.md)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align_anything.core.types import Embedding, MediaKind, Video
from align_anything.models import structure
from align_anything.models.composed.configuration_composed import WAVE_ENCODERS
from align_anything.models.composed.register import register
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.tower_calls import Item, TowerCalls

register()

ARGUMENTS: Mapping[MediaKind, str] = {'image': 'images', 'video': 'videos', 'audio': 'audio'}


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


class ComposedEncoder(RunEncoder):
    """Hands over vectors where the model has no encoder of its own for a kind."""

    def embedding_size(self, kind: MediaKind) -> int | None:
        """Returns the size of the vectors that stand for media of a kind, None where the model reads media itself."""
        return self.processor.rules[kind].get('vectors')

    def smallest(self, kind: MediaKind, rate: int | None) -> Any:
        """Returns a small medium that the processor takes: zeros where it takes vectors."""
        size = self.embedding_size(kind)
        return super().smallest(kind, rate) if size is None else Embedding(np.zeros(size, np.float32))

    def likeness(self, video: Video) -> Hashable:
        """Returns what the videos of one call must have in common; vectors have all of it."""
        return None if self.embedding_size('video') else super().likeness(video)

    def arguments(self, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Returns the processor's arguments, vectors as arrays."""
        vectors = {kind: items for kind, items in media.items() if self.embedding_size(kind)}
        others = super().arguments({kind: items for kind, items in media.items() if kind not in vectors})
        return others | {ARGUMENTS[kind]: [item.values for item in items] for kind, items in vectors.items()}


class ComposedSpec(FamilySpec):
    """The default rules; what the model reads stands in its configuration."""

    encoder_class = ComposedEncoder

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds of media that the checkpoint was composed for."""
        return frozenset(self.config.media)

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
