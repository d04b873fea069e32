"""The floating point operations of a batch of samples, as PyTorch meets them in the first call of a shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from align_anything.core.counting import Counting
from align_anything.core.flops import Flops, of_update
from align_anything.models.trainable import count
from align_anything.policies.denoising.collator import DenoisingInputs

DENOISER = 'denoiser'


class Calls:
    """What a forward pass of one row takes, by the shapes of what it is given."""

    def __init__(self) -> None:
        self._of_row: dict[Any, tuple[float, float]] = {}

    @contextmanager
    def counted(self, inputs: DenoisingInputs, rows: int) -> Iterator[None]:
        """Counts what is computed in here, if no call was of these shapes."""
        key = _shapes(inputs)
        if key in self._of_row or not rows:
            yield
            return
        with Counting() as counting:
            yield
        self._of_row[key] = counting.products / rows, counting.attention / rows

    def flops(self, inputs: DenoisingInputs, model: nn.Module, guided: bool, recomputes: float) -> dict[str, Flops]:
        """Returns the operations of an update on rows of these shapes; none where none were computed yet.

        What follows no prompt goes forward alone.
        """
        found = self._of_row.get(_shapes(inputs))
        if found is None:
            return {}
        rows = len(inputs.sample)
        every = sum(count(parameter) for parameter in model.parameters())
        trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
        own = of_update(*(rows * number for number in found), trained / every, recomputes)
        weak = own.forward if guided and inputs.unconditional is not None else 0.0
        return {DENOISER: own + Flops(weak)}


def _shapes(inputs: DenoisingInputs) -> Any:
    conditions = sorted((name, tuple(value.shape[1:])) for name, value in inputs.conditions.items())
    return tuple(inputs.sample.shape[1:]), tuple(conditions)
