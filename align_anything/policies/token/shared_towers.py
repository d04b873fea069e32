"""Towers of ranks that share rows: each computes some of a row's images, videos and audio clips, and all get them.

As with a cache of features, the forward pass of a tower's module is replaced on the live model, and what a family says
of its calls (`FamilySpec.tower_calls`) splits them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.datasets.balancing import partition
from align_anything.models.family import FamilySpec
from align_anything.models.tower_calls import TOWERS, Features, Item, TowerCalls, arguments_of
from align_anything.policies.token.sequence_parallel import Share

logger = get_logger(__name__)


class SharedTowers:
    """The towers of a plain `model`, whose calls ranks share `while_sharing` a row."""

    def __init__(self, model: nn.Module, spec: FamilySpec, share: Share) -> None:
        """Replaces the towers' forward passes where ranks share rows; a cache of features is asked by the new ones."""
        self._towers: list[SharedTower] = []
        if share.size == 1:
            return
        for component in TOWERS:
            for name in spec.components.get(component, ()):
                module = model.get_submodule(name)
                self._towers.append(SharedTower(name, module, spec.tower_calls(component)))
                module.forward = self._towers[-1]

    @contextmanager
    def while_sharing(self, share: Share) -> Iterator[None]:
        """Lets the ranks of `share`, whose calls are the same, compute them together for a while."""
        for tower in self._towers:
            tower.share = share
        try:
            yield
        finally:
            for tower in self._towers:
                tower.share = Share()


class SharedTower:
    """Stands in for the forward method of a tower. `computed` counts the items that it ran for on this rank."""

    def __init__(self, name: str, tower: nn.Module, calls: TowerCalls) -> None:
        self.name, self.tower, self.calls = name, tower, calls
        self.forward: Callable[..., Any] = tower.forward
        self.signature = inspect.signature(tower.forward)
        self.share = Share()
        self.splits = True
        self.computed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.share.group is None or not self.splits:
            return self.forward(*args, **kwargs)
        tensors, others = arguments_of(self.signature, args, kwargs)
        try:
            items = self.calls.items(tensors)
            features = self._features(items, others)
        except ModelError:
            # The same on every rank: it hangs on the class alone.
            self.splits = False
            logger.warning(
                "calls of '%s' cannot be split into single media: each of the ranks that share a row computes all of "
                'them (override tower_calls() in a FamilySpec, docs/extending.md)',
                self.name,
            )
            return self.forward(*args, **kwargs)
        return self.calls.together(features)

    def _features(self, items: list[Item], others: dict[str, Any]) -> list[Features]:
        sizes = [sum(tensor.numel() for tensor in item.values()) for item in items]
        shares = partition(sizes, self.share.size)
        # With less media than ranks some compute one for nothing: all gather the tower's weights, and reduce gradients.
        mine = shares[self.share.number] or [sizes.index(min(sizes))]
        made = self.calls.compute(self.tower, self.forward, [items[index] for index in mine], others)
        self.computed += len(mine)
        return gathered_features(made, shares, self.share)


def gathered_features(made: Sequence[Features], shares: Sequence[Sequence[int]], share: Share) -> list[Features]:
    """Returns the features of all items, of which each rank `made` those that `shares` has for it.

    A rank without any gives those of another one, which count for nothing. Gradients of all ranks go to the rank that
    made what they are of.
    """
    counted = made if shares[share.number] else []
    shapes = all_gather_object([{name: value.shape for name, value in one.items()} for one in counted], share.group)
    found: list[Features] = [{} for _ in chain(*shares)]
    for name in made[0]:
        numbers = [[of_item[name].numel() for of_item in of_rank] for of_rank in shapes]
        totals = [sum(of_rank) for of_rank in numbers]
        own = torch.cat([one[name].flatten() for one in made])[: totals[share.number]]
        values = _Gathered.apply(own, totals, share.group).split([*chain(*numbers)])
        for item, of_item, value in zip(chain(*shares), chain(*shapes), values, strict=True):
            found[item][name] = value.view(of_item[name])
    return found


class _Gathered(torch.autograd.Function):
    """The values of all ranks of a group, end to end; those of a rank get the sum of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, numbers: list[int], group: Any) -> Tensor:
        ctx.numbers, ctx.group = numbers, group
        padded = own.new_zeros(max(numbers))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in numbers]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        size, own = len(ctx.numbers), ctx.numbers[torch.distributed.get_rank(ctx.group)]
        received = gradient.new_empty(size * own)
        torch.distributed.all_to_all_single(received, gradient.contiguous(), [own] * size, ctx.numbers, group=ctx.group)
        return received.view(size, own).sum(0), None, None
