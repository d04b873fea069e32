"""Floating point operations as PyTorch meets them."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ON_CPU = '_scaled_dot_product_flash_attention_for_cpu'
BACK_ON_CPU = f'{ON_CPU}_backward'


class Counting(TorchDispatchMode):
    """Adds up the operations of matrix products and convolutions, and of attention, forward and backward."""

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
        elif packet.__name__ == BACK_ON_CPU:
            self.attention += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        return out
