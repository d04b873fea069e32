"""The time that this rank's device computes, without what it waits for others in collectives.

In a step of several ranks all take as long as the slowest, so that their times do not tell which one it is. Layers
compute between the collectives, whatever the engine: what they take is the rank's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from align_anything.models.compiling import is_compiled


class OwnTime:
    """Adds up what the layers of a model take while it is `watching`, on a GPU by its own clock."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Times the layers of `model` meanwhile."""
        self.take()
        begun: dict[nn.Module, Any] = {}

        def begin(layer: nn.Module, _: Any) -> None:
            begun[layer] = _now()

        def end(layer: nn.Module, *_: Any) -> None:
            started = begun.pop(layer)
            if isinstance(started, float):
                self._seconds += time.perf_counter() - started
            else:
                self._spans.append((started, _now()))

        # An engine that gathers weights before a layer and lets them go behind it has hooks of its own around these.
        hooks = [
            hook
            for layer in dict.fromkeys(_layers(model))
            for hook in (layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, prepend=True))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> float:
        """Returns the seconds of what was watched last, once the device has computed it; 0 where nothing was."""
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._spans) / 1000
            self._spans = []
        taken, self._seconds = self._seconds, 0.0
        return taken


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The innermost modules with parameters. What is compiled counts as one: it would be compiled again for hooks."""
    children = [] if is_compiled(module) else list(module.children())
    for child in children:
        yield from _layers(child)
    if not children and next(module.parameters(), None) is not None:
        yield module


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
