"""A cache of keys and values that makes room ahead, where transformers' own copies all it holds for each new token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """The keys and values of one layer, views of tensors that are longer."""

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        """Takes over what `layer` holds, with `room` for so many tokens more."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._all = [_longer(layer.keys, room), _longer(layer.values, room)]
        self.keys, self.values = layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values `(batch, heads, tokens, width)`; returns all of them."""
        before, new = self.get_seq_length(), key_states.shape[-2]
        if before + new > self._all[0].shape[-2]:
            self._all = [_longer(held[..., :before, :], before + new) for held in self._all]
        for held, states in zip(self._all, (key_states, value_states), strict=True):
            held[..., before : before + new, :] = states
        self.keys, self.values = (held[..., : before + new, :] for held in self._all)
        return self.keys, self.values


def make_room(cache: Cache, room: int) -> None:
    """Makes room for so many tokens more in those layers of a cache that keep all tokens."""
    cache.layers = [GrowingLayer(layer, room) if type(layer) is DynamicLayer else layer for layer in cache.layers]


def _longer(states: Tensor, room: int) -> Tensor:
    batch, heads, length, width = states.shape
    longer = states.new_empty(batch, heads, length + room, width)
    longer[..., :length, :] = states
    return longer
