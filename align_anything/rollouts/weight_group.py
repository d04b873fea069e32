"""A process group that a rank shares with the servers it feeds: weights go to all of them at once, past HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from align_anything.core.errors import TrainingError

PAUSE = 0.0005
Shapes = list[tuple[str, str, list[int]]]
"""Name, type and shape of each tensor that is to come."""


class PeerError(TrainingError):
    """The other side of a group of ours is gone, or does nothing."""


def join_group(host: str, port: int, rank: int, size: int, backend: str, seconds: float) -> Any:
    """Returns the group, when all `size` members are there; the one of rank 0 listens at `host` and `port`.

    It is apart from the group that a run trains with. Needs vLLM, whose function it is. Raises PeerError when they are
    not all there after `seconds`.
    """
    from vllm.distributed.utils import stateless_init_torch_distributed_process_group

    timeout = timedelta(seconds=seconds)
    try:
        return stateless_init_torch_distributed_process_group(host, port, rank, size, backend, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerError(
            f'not all {size} members of the group at {host}:{port} were there within {seconds:g} s: {error}'
        ) from error


def shapes_of(tensors: dict[str, Tensor]) -> Shapes:
    """Returns what `receive` must know of tensors."""
    return [(name, str(tensor.dtype).removeprefix('torch.'), list(tensor.shape)) for name, tensor in tensors.items()]


def send(
    group: Any, tensors: Sequence[Tensor], backend: str, seconds: float, listen: Callable[[], None] = lambda: None
) -> None:
    """Sends tensors to all others of the group.

    Raises PeerError when one is not taken within `seconds`, and what `listen` raises, which is called all the while.
    """
    for tensor in tensors:
        _finish(group.broadcast(tensor.detach().to(_device(backend)).contiguous(), 0), seconds, listen)


def receive(group: Any, shapes: Shapes, backend: str, seconds: float) -> dict[str, Tensor]:
    """Returns what rank 0 sends, on the CPU. Raises PeerError when a tensor is not there within `seconds`."""
    found = {}
    for name, dtype, shape in shapes:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=_device(backend))
        _finish(group.broadcast(tensor, 0), seconds, lambda: None)
        found[name] = tensor.cpu()
    return found


def _finish(work: Any, seconds: float, listen: Callable[[], None]) -> None:
    """Waits for what a group does. Looking is no call that a dead peer could hold up, as waiting is."""
    end = time.monotonic() + seconds
    while not work.is_completed():
        listen()
        if time.monotonic() > end:
            raise PeerError(f'the other side of the group did nothing for {seconds:g} s.')
        time.sleep(PAUSE)
    try:
        work.wait()
    except RuntimeError as error:
        raise PeerError(f'the other side of the group is gone: {error}') from error


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
