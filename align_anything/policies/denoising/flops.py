"""The floating point operations of a batch of samples, as PyTorch meets them in the first call of a shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from align_anything.core.counting import Counting
from align_anything.core.flops import Flops, of_update
from align_anything.models.trainable import count
from align_anything.policies.denoising.collator import DenoisingInputs

DENOISER = 'denoiser'


class Calls:
    """What a forward pass of one row takes, by the shapes of what it is given.

    A call of samples of several sizes counts as that of an average element of the first such call: products by the
    number of elements, attention by its square.
    """

    def __init__(self) -> None:
        self._of_row: dict[Any, tuple[float, float]] = {}
        self._of_element: tuple[float, float] | None = None

    @contextmanager
    def counted(self, sizes: Sequence[DenoisingInputs], rows: int) -> Iterator[None]:
        """Counts what is computed in here of `rows` samples, if no call was of these shapes."""
        if len(sizes) > 1:
            with self._counted_together(sizes, rows):
                yield
            return
        key = _shapes(sizes[0])
        if key in self._of_row or not rows:
            yield
            return
        with Counting() as counting:
            yield
        self._of_row[key] = counting.products / rows, counting.attention / rows

    @contextmanager
    def _counted_together(self, sizes: Sequence[DenoisingInputs], rows: int) -> Iterator[None]:
        if self._of_element is not None:
            yield
            return
        with Counting() as counting:
            yield
        passes = rows / sum(len(own.sample) for own in sizes)
        elements, squares = _elements(sizes)
        self._of_element = counting.products / passes / elements, counting.attention / passes / squares

    def _forward(self, inputs: DenoisingInputs) -> tuple[float, float] | None:
        if not inputs.others:
            found = self._of_row.get(_shapes(inputs))
            return None if found is None else (len(inputs.sample) * found[0], len(inputs.sample) * found[1])
        if self._of_element is None:
            return None
        elements, squares = _elements(inputs.sizes)
        return self._of_element[0] * elements, self._of_element[1] * squares

    def flops(self, inputs: DenoisingInputs, model: nn.Module, guided: bool, recomputes: float) -> dict[str, Flops]:
        """Returns the operations of an update on rows of these shapes; none where none were computed yet.

        What follows no prompt goes forward alone.
        """
        found = self._forward(inputs)
        if found is None:
            return {}
        every = sum(count(parameter) for parameter in model.parameters())
        trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
        own = of_update(*found, trained / every, recomputes)
        weak = own.forward if guided and inputs.unconditional is not None else 0.0
        return {DENOISER: own + Flops(weak)}


def _elements(sizes: Sequence[DenoisingInputs]) -> tuple[float, float]:
    """The elements of all samples, and the sum of their squares by sample."""
    of_sizes = [(len(own.sample), own.sample[0].numel()) for own in sizes]
    return float(sum(rows * own for rows, own in of_sizes)), float(sum(rows * own**2 for rows, own in of_sizes))


def _shapes(inputs: DenoisingInputs) -> Any:
    conditions = sorted((name, tuple(value.shape[1:])) for name, value in inputs.conditions.items())
    return tuple(inputs.sample.shape[1:]), tuple(conditions)
