"""How floating point operations are counted, and how many a device can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flops:
    """Floating point operations; a multiplication and an addition are two.

    Attributes:
        forward, backward: of a model on its data, however it computes them: padding and recomputation left out. What
            is frozen and has nothing below it that trains goes forward alone.
        again: what is computed a second time in order to spare memory.
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    @property
    def model(self) -> float:
        """What utilisation counts (Chowdhery et al., 2022, arXiv:2204.02311, appendix B)."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def __truediv__(self, ranks: int) -> Flops:
        """The share of each of several ranks."""
        return Flops(self.forward / ranks, self.backward / ranks, self.again / ranks)

    def forward_only(self) -> Flops:
        """That of a pass without gradients."""
        return Flops(self.forward)


def of_update(products: float, attention: float, trained: float, recomputes: float) -> Flops:
    """Returns the operations of an update, given those of a forward pass in matrices and convolutions, and attention.

    These have a gradient as far as their weights train, of which `trained` is the share. `recomputes` is that of the
    forward pass which the backward pass computes again.
    """
    forward = products + attention
    if not trained:
        return Flops(forward)
    return Flops(forward, products * (1 + trained) + 2 * attention, forward * recomputes)


@dataclass(frozen=True)
class Accelerator:
    """What the data sheet of a device says.

    Attributes:
        tflops: 10¹² dense operations a second in bfloat16.
        bandwidth: of its memory, in 10⁹ bytes a second.
        link: to other devices of the machine, in 10⁹ bytes a second in each direction.
    """

    tflops: float
    bandwidth: float
    link: float


ACCELERATORS = {
    'GB200': Accelerator(2500.0, 8000.0, 900.0),
    'B200': Accelerator(2250.0, 8000.0, 900.0),
    'H200': Accelerator(989.4, 4800.0, 450.0),
    'H100 PCIe': Accelerator(756.0, 2000.0, 64.0),
    'H100 NVL': Accelerator(835.5, 3900.0, 300.0),
    'H100': Accelerator(989.4, 3350.0, 450.0),
    'H800': Accelerator(989.4, 3350.0, 200.0),
    'H20': Accelerator(148.0, 4000.0, 450.0),
    'A100': Accelerator(312.0, 2039.0, 300.0),
    'A800': Accelerator(312.0, 2039.0, 200.0),
    'A10G': Accelerator(70.0, 600.0, 32.0),
    'A10': Accelerator(125.0, 600.0, 32.0),
    'A40': Accelerator(149.7, 696.0, 56.0),
    'L40S': Accelerator(362.0, 864.0, 32.0),
    'L40': Accelerator(181.0, 864.0, 32.0),
    'L4': Accelerator(121.0, 300.0, 32.0),
    'RTX 4090': Accelerator(165.2, 1008.0, 32.0),
    'RTX 3090': Accelerator(71.0, 936.0, 32.0),
}
"""By a part of the name that the device gives itself; the first that is found in it counts."""


def accelerator_of(name: str) -> Accelerator | None:
    """Returns what is known of the device of this name, such as `NVIDIA H100 80GB HBM3`; None for nothing."""
    words = name.lower()
    return next((known for part, known in ACCELERATORS.items() if part.lower() in words), None)
