"""The floating point operations of a batch of samples, as PyTorch meets them in the first call of a shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from align_anything.core.flops import Flops
from align_anything.models.trainable import count
from align_anything.policies.denoising.collator import DenoisingInputs

DENOISER = 'denoiser'
ON_CPU = '_scaled_dot_product_flash_attention_for_cpu'


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

        Convolutions and matrices have a gradient as far as their weights train. What follows no prompt goes forward
        alone.
        """
        found = self._forward(inputs)
        if found is None:
            return {}
        products, attention = found
        every = sum(count(parameter) for parameter in model.parameters())
        trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
        forward = products + attention
        backward = products * (1 + trained / every) + 2 * attention if trained else 0.0
        weak = forward if guided and inputs.unconditional is not None else 0.0
        return {DENOISER: Flops(forward + weak, backward, forward * recomputes if trained else 0.0)}


def _elements(sizes: Sequence[DenoisingInputs]) -> tuple[float, float]:
    """The elements of all samples, and the sum of their squares by sample."""
    of_sizes = [(len(own.sample), own.sample[0].numel()) for own in sizes]
    return float(sum(rows * own for rows, own in of_sizes)), float(sum(rows * own**2 for rows, own in of_sizes))


def _shapes(inputs: DenoisingInputs) -> Any:
    conditions = sorted((name, tuple(value.shape[1:])) for name, value in inputs.conditions.items())
    return tuple(inputs.sample.shape[1:]), tuple(conditions)


class Counting(TorchDispatchMode):
    """Adds up the operations of matrix products and convolutions, and of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attention = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            number = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            # Between two activations there is no weight.
            if 'attention' in packet.__name__ or 'bmm' in packet.__name__:
                self.attention += number
            else:
                self.products += number
        elif packet.__name__ == ON_CPU:
            self.attention += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        return out
