"""What one rank has read goes to all: the others build the same model without weights, and receive it module by module.

So only one copy of a model lies in the host memory of all ranks, however many of them a machine has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align_anything.core.distributed import all_gather_object, broadcast_object, is_main, world_size
from align_anything.core.errors import ModelError
from align_anything.engines.fsdp_config import is_fsdp


def builds_without_weights(config: Mapping[str, Any]) -> bool:
    """Whether this rank is one that leaves it to rank 0 to read the weights, and is handed its share of them."""
    return is_fsdp(config) and world_size() > 1 and not is_main()


class Handing:
    """Hands the tensors of a model out from rank 0: parameters, buffers that are saved or not, other attributes."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Looks at what there is; where every rank has all of it, nothing is handed. Every rank calls it.

        Raises ModelError on all ranks where they have built different models.
        """
        self._device = device
        slots = [
            (name, module, store, key)
            for name, module in model.named_modules()
            for store in (module._parameters, module._buffers, vars(module))
            for key in store
            if isinstance(store[key], Tensor)
        ]
        tensors = [store[key] for _, _, store, key in slots]
        if not any(all_gather_object(any(tensor.is_meta for tensor in tensors))):
            slots = []
        # Parts that nobody trains with, such as codecs, have no weights on rank 0 either.
        absent = broadcast_object({(name, key) for name, _, store, key in slots if store[key].is_meta})
        slots = [slot for slot in slots if (slot[0], slot[3]) not in absent]
        numbers: dict[int, int] = {}
        self._left: dict[nn.Module, list[tuple[dict[str, Any], str, int]]] = {}
        described = []
        for name, module, store, key in slots:
            tensor = store[key]
            number = numbers.setdefault(id(tensor), len(numbers))
            self._left.setdefault(module, []).append((store, key, number))
            described.append((name, key, number, tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad))
        self._uses = Counter(number for slots in self._left.values() for *_, number in slots)
        self._shared: dict[int, Tensor] = {}
        self._require_same(described)

    def hand(self, module: nn.Module) -> None:
        """Gives every rank what `module` and those in it have, as far as it has not yet. Every rank calls it."""
        for inner in module.modules():
            for store, key, number in self._left.pop(inner, ()):
                store[key] = self._shared[number] if number in self._shared else self._handed(store[key])
                if self._uses[number] > 1:
                    self._shared[number] = store[key]

    def _handed(self, own: Tensor) -> Tensor:
        if is_main():
            self._send(own.detach().to(self._device))
            return own
        received = torch.empty(own.shape, dtype=own.dtype, device=self._device)
        self._send(received)
        if not isinstance(own, nn.Parameter):
            return received
        parameter = nn.Parameter(received, requires_grad=own.requires_grad)
        # What transformers and peft note on it.
        vars(parameter).update(vars(own))
        return parameter

    def _send(self, tensor: Tensor) -> None:
        # As bytes: not every type is known to every backend.
        dist.broadcast(tensor.contiguous().reshape(-1).view(torch.uint8), src=0)

    def _require_same(self, described: list[tuple[Any, ...]]) -> None:
        read = broadcast_object(described)
        different = sorted({*read} ^ {*described}, key=str)[:4] if read != described else []
        problems = [problem for problem in all_gather_object(different) if problem]
        if problems:
            raise ModelError(
                f'the model that rank 0 has read is not the one that other ranks have built to be handed its weights; '
                f'they differ in {problems[0]}. Train it with engine: deepspeed.'
            )
