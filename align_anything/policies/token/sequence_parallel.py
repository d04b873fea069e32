"""Sequence parallelism: several ranks compute one row, each a share of its tokens, attention a share of its heads.

Ranks of a group hold the same batch. Towers compute a share of its media each (`shared_towers.py`), embeddings see all
of it; before the first layer of the language model each rank keeps its own tokens, and after the last one it scores an
equal share of the units. Around attention two exchanges turn a share of the tokens with all heads into all
tokens with a share of the heads and back (DeepSpeed Ulysses: Jacobs et al., 2023, arXiv:2309.14509).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from align_anything.core.distributed import rank, subgroup
from align_anything.models.tiling import layers_of

SEGMENTS = 'segments'
"""The name under which layers are called with the attention plan of a row."""
STATES = 'hidden_states'
ALONG = {STATES: 1, 'per_layer_input': 1, 'position_embeddings': -2, 'position_ids': -1, 'cache_position': 0}
"""Which dimension of what layers are called with goes along the tokens."""
ADDED_AT, ADDED = 'visual_pos_masks', 'deepstack_visual_embeds'
"""Under which names a language model is called with features that it adds to states between its layers (deepstack):
where, `(1, length)` bool, and what, for each of these layers `(such tokens, size)`."""


@dataclass(frozen=True)
class Share:
    """The share that a rank has of each row.

    Attributes:
        size: ranks that share a row.
        number: of this rank among them.
        group: they themselves; None where a rank has its rows for itself.
    """

    size: int = 1
    number: int = 0
    group: ProcessGroup | None = None

    @staticmethod
    def of(size: int) -> Share:
        """Returns the share of this rank where each `size` ranks in a row share theirs. Every rank calls it."""
        return Share() if size == 1 else Share(size, rank() % size, subgroup(size))

    def slice(self, length: int) -> slice:
        """Returns which of that many tokens are its own."""
        own = length // self.size
        return slice(self.number * own, (self.number + 1) * own)

    def spread(self, index: Tensor, states: Tensor) -> tuple[Tensor, slice]:
        """Returns the states at an equal share of `index` `(number,)`, and which of them these are.

        `states` `(own tokens, size)` are those of this rank; what is scored may stand where another one has them all.
        """
        if self.group is None:
            return states.index_select(0, index), slice(None)
        number = len(index)
        bounds = [number * rank // self.size for rank in range(self.size + 1)]
        own, owner = slice(*bounds[self.number : self.number + 2]), index // len(states)
        sent = [index[start:stop][owner[start:stop] == self.number] for start, stop in pairwise(bounds)]
        wanted = torch.bincount(owner[own], minlength=self.size).tolist()
        given = states.index_select(0, torch.cat(sent) - self.number * len(states))
        received = self._exchange(given, wanted, [len(to) for to in sent])
        # They come rank by rank.
        return received.index_select(0, owner[own].argsort(stable=True).argsort()), own

    def whole(self, values: Tensor, which: slice, number: int) -> Tensor:
        """Returns the `number` values of all ranks `(number, …)` from those at `which` that this one computed.

        Each rank's gradient goes to its own values.
        """
        if self.group is None:
            return values
        around = which.start, number - which.stop
        return self.summed(nn.functional.pad(values, (*(0, 0) * (values.ndim - 1), *around)))

    def summed(self, tensor: Tensor) -> Tensor:
        """Returns the sum of what each rank computed. Each rank's gradient goes to its own."""
        return tensor if self.group is None else _Sum.apply(tensor, self.group)

    def to_heads(self, tensor: Tensor) -> Tensor:
        """Returns `(1, heads / size, length, width)` from `(1, heads, length / size, width)`.

        Fewer heads than ranks are repeated.
        """
        heads = tensor.shape[1]
        tensor = tensor if heads >= self.size else tensor.repeat_interleave(self.size // heads, dim=1)
        split = tensor[0].unflatten(0, (self.size, -1))
        return self._exchange(split).transpose(0, 1).flatten(1, 2)[None]

    def to_tokens(self, tensor: Tensor) -> Tensor:
        """Returns `(1, length / size, heads, width)` from `(1, length, heads / size, width)`."""
        split = tensor[0].unflatten(0, (self.size, -1))
        return self._exchange(split).transpose(0, 1).flatten(1, 2)[None]

    def heads(self, values: Tensor) -> Tensor:
        """Returns those of its own heads from numbers of all `(heads,)`."""
        return values.unflatten(0, (self.size, -1))[self.number]

    def _exchange(self, given: Tensor, wanted: list[int] | None = None, sent: list[int] | None = None) -> Tensor:
        """What each rank sends this one of its rows, rank by rank; equally many where their numbers are not said."""
        from torch.distributed.nn.functional import all_to_all_single

        rows = len(given) if wanted is None else sum(wanted)
        received = given.new_empty(rows, *given.shape[1:])
        return all_to_all_single(received, given.contiguous(), wanted, sent, group=self.group)


class _Sum(torch.autograd.Function):
    """The sum over a group, of which each rank computes the same loss: the gradient of it is that of its own part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def share_layers(model: PreTrainedModel, component_of: Callable[[str], str], share: Share) -> None:
    """Makes the layers of the language model keep their own tokens of rows that are shared.

    `component_of` says of a name of a parameter which component it belongs to. Raises ModelError where it is not known
    which layers they are.
    """
    layers = layers_of(model, component_of, 'sequence_parallel_size')
    for layer in layers:
        layer.register_forward_pre_hook(_Kept(layer, share), with_kwargs=True)
    owner = next(module for module in model.modules() if any(child is layers for child in module.children()))
    owner.register_forward_pre_hook(partial(_keep_added, share), with_kwargs=True)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Kept:
    """Keeps of what a layer is called with the tokens of this rank."""

    def __init__(self, layer: nn.Module, share: Share) -> None:
        # What comes first are the states, whatever they are called.
        _, *self.names = inspect.signature(layer.forward).parameters
        self.share = share

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        length = _length(kwargs)
        if length is None:
            return None
        own = self.share.slice(length)

        def kept(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                dim = ALONG[name]
                return value.narrow(dim, own.start, own.stop - own.start) if value.shape[dim] == length else value
            if isinstance(value, Mapping):
                return {key: kept(name, one) for key, one in value.items()}
            return tuple(kept(name, one) for one in value) if isinstance(value, tuple) else value

        given = {**dict(zip([STATES, *self.names], args, strict=False)), **kwargs}
        cut = {name: kept(name, value) if name in ALONG else value for name, value in given.items()}
        return tuple(cut.values())[: len(args)], {name: cut[name] for name in kwargs}


def _keep_added(share: Share, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Keeps of what a language model adds to states between its layers what is added to those of this rank."""
    length = _length(kwargs)
    if length is None or kwargs.get(ADDED) is None:
        return None
    where, own = kwargs[ADDED_AT], share.slice(length)
    before, mine = int(where[:, : own.start].sum()), int(where[:, own].sum())
    added = [features.narrow(0, before, mine) for features in kwargs[ADDED]]
    return args, {**kwargs, ADDED_AT: where[:, own], ADDED: added}


def _length(kwargs: Mapping[str, Any]) -> int | None:
    """The tokens of the row that a call is for; None where ranks do not share it."""
    plan = kwargs.get(SEGMENTS)
    return None if plan is None or plan.share.group is None else plan.spans[-1].stop
