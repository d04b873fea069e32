"""A process group that a rank shares with the servers it feeds: weights go to all of them at once, past HTTP."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

Shapes = list[tuple[str, str, list[int]]]
"""Name, type and shape of each tensor that is to come."""


def join_group(host: str, port: int, rank: int, size: int, backend: str) -> Any:
    """Returns the group, when all `size` members are there; the one of rank 0 listens at `host` and `port`.

    It is apart from the group that a run trains with. Needs vLLM, whose function it is.
    """
    from vllm.distributed.utils import stateless_init_torch_distributed_process_group

    return stateless_init_torch_distributed_process_group(host, port, rank, size, backend)


def shapes_of(tensors: dict[str, Tensor]) -> Shapes:
    """Returns what `receive` must know of tensors."""
    return [(name, str(tensor.dtype).removeprefix('torch.'), list(tensor.shape)) for name, tensor in tensors.items()]


def send(group: Any, tensors: Sequence[Tensor], backend: str) -> None:
    """Sends tensors to all others of the group."""
    for tensor in tensors:
        group.broadcast(tensor.detach().to(_device(backend)).contiguous(), 0).wait()


def receive(group: Any, shapes: Shapes, backend: str) -> dict[str, Tensor]:
    """Returns what rank 0 sends, on the CPU."""
    found = {}
    for name, dtype, shape in shapes:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=_device(backend))
        group.broadcast(tensor, 0).wait()
        found[name] = tensor.cpu()
    return found


def address_seen_from(url: str) -> tuple[str, int]:
    """Returns the address of this machine on the way to a server, and a port that is free here."""
    parts = urlsplit(url)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as way:
        way.connect((parts.hostname, parts.port or 80))
        host = way.getsockname()[0]
    with closing(socket.socket()) as listener:
        listener.bind((host, 0))
        return host, listener.getsockname()[1]


def _device(backend: str) -> str:
    return 'cuda' if backend == 'nccl' else 'cpu'
