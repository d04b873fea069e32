"""Actions as numbers or names, and the space that they are from: what a checkpoint must know of them to act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from align_anything.core.errors import SampleError

Normalization = Literal['quantiles', 'min_max', 'mean_std', 'identity']


@dataclass(frozen=True, eq=False)
class Actions:
    """What is done in one turn: one step, or a chunk of several.

    Attributes:
        values: of each step and dimension, as the environment takes them, `(steps, dimensions)` float64; None for
            named actions.
        names: of each step, for spaces of named actions.
    """

    values: Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names) if self.values is None else len(self.values)


@dataclass(frozen=True)
class Statistics:
    """Of the actions of one dataset, each with a number per dimension.

    Attributes:
        low, high: what -1 and 1 stand for: their 1st and 99th percentiles, or least and greatest values.
        mean, std: of mean-std normalisation.
        mask: which dimensions are normalised; others, such as a gripper that is open or closed, stay as they are.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mask: tuple[bool, ...]


@dataclass(frozen=True)
class ActionSpace:
    """What the actions of a policy are, saved in its checkpoint as `action_space.json`. Picklable.

    Attributes:
        names: the named actions, one of which is chosen at each step; empty where actions are numbers.
        dimensions: names of the numbers of an action; empty where it has a name.
        bins: how many values a token can stand for, where actions are tokens.
        normalization: how statistics bring numbers to [-1, 1], or to unit variance.
        statistics: of each dataset that was trained on, by name.
        dataset: the one whose statistics hold where nothing else is said; see `of`.
        chunk: steps that the policy says in one turn.
        executed: how many of them are done before it is asked again.
        cameras: names of the pictures of a step, in the order in which the policy sees them.
        pictures: what was done to each picture before the policy saw it, such as `{'rotate': 180}`.
    """

    names: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    bins: int = 256
    normalization: Normalization = 'quantiles'
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    dataset: str = ''
    chunk: int = 1
    executed: int = 1
    cameras: tuple[str, ...] = ()
    pictures: Mapping[str, Any] = field(default_factory=dict)

    def indices(self, actions: Actions) -> Tensor:
        """Returns the number of each named action, `(steps,)` int64. Raises SampleError for an unknown one."""
        unknown = [name for name in actions.names if name not in self.names]
        if unknown or actions.values is not None:
            what = f"'{unknown[0]}'" if unknown else 'numbers'
            raise SampleError(f'the action is {what}, and should be one of {", ".join(self.names)}')
        return torch.tensor([self.names.index(name) for name in actions.names])

    def named(self, indices: Sequence[int]) -> Actions:
        """Returns the actions of these numbers."""
        return Actions(names=tuple(self.names[index] for index in indices))
