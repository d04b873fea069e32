"""Training state by the names of parameters: the form in which one engine reads what the other wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WEIGHTS = 'fp32'
"""What the weights are called beside the moments of the optimizer, which have the names that it gives them."""


@dataclass(frozen=True)
class NamedState:
    """What a run needs to go on.

    Attributes:
        of: returns, for the name of a trained parameter, its weights in float32 and the moments of the optimizer, all
            with as many numbers as the parameter. Without moments no step was taken yet.
        step: how many steps the optimizer took.
        schedule: the state of the schedule.
    """

    of: Callable[[str], dict[str, Tensor]]
    step: float
    schedule: dict[str, Any]


def go_on(optimizer: Optimizer, schedule: LRScheduler, told: dict[str, Any]) -> None:
    """Sets the schedule to the state that it told of, and the rates of the optimizer with it."""
    schedule.load_state_dict(told)
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group['lr'] = rate
