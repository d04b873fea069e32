"""Layers that torch.compile compiles one by one: of a whole model with media it would compile many pieces anyway.

What is compiled is the forward pass of each layer, below its hooks and below the recomputation of activations, and
under the names that its weights have. Layers of a class share what is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

BACKEND = 'inductor'
FORMS = 16
"""How often the code of a layer may be compiled: for gradients and without, for one row and several, for each of the
kinds of layers that a class has."""

_COUNTED: ContextVar[bool] = ContextVar('counted', default=False)


@dataclass
class Compiling:
    """What the layers of a model have in common.

    Attributes:
        failure: why a layer could not be compiled; None until that happens.
        told: whether it was said that there are more forms than are compiled.
    """

    failure: str | None = None
    told: bool = False


@dataclass
class CompiledForward:
    """The forward pass of one layer, compiled where that works, and the plain one where it does not.

    What is generated token by token, with a cache that grows, is not compiled, nor what is called to be counted
    (core/counting.py): torch compiles nothing below such a mode, and never again what it was given there. A layer that
    failed once stays plain: what is recomputed for the backward pass must be what was computed.
    """

    plain: Callable[..., Any]
    compiled: Callable[..., Any]
    shared: Compiling
    has_run: bool = False
    failed: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._dynamo.utils import counters
        from torch.utils._python_dispatch import is_in_torch_dispatch_mode

        self.failed |= self.shared.failure is not None and not self.has_run
        counted = _COUNTED.get() or is_in_torch_dispatch_mode()
        if self.failed or counted or kwargs.get('past_key_values') is not None:
            return self.plain(*args, **kwargs)
        try:
            with config.patch(recompile_limit=FORMS, fail_on_recompile_limit_hit=True):
                found = self.compiled(*args, **kwargs)
        except FailOnRecompileLimitHit:
            if not self.shared.told:
                logger.warning('torch_compile: a layer met more than %d forms; others are computed plainly.', FORMS)
            self.shared.told = True
            return self.plain(*args, **kwargs)
        except TorchDynamoException as error:
            self._fail(_first_line(error))
            return self.plain(*args, **kwargs)
        if not counters['stats']['unique_graphs']:
            self._fail('torch compiled none of what it was given, and says no reason')
        self.has_run = True
        return found

    def _fail(self, reason: str) -> None:
        self.failed = True
        if self.shared.failure is None:
            self.shared.failure = reason
            logger.warning('torch_compile: layers train without, they cannot be compiled: %s', reason)


def compile_layers(layers: Iterable[nn.Module]) -> Compiling:
    """Has the forward pass of each layer compiled when it is called: for one length first, then for any."""
    shared = Compiling()
    for layer in layers:
        # Not dynamic from the start, when torch reasons for minutes about sizes that never change.
        compiled = torch.compile(layer.forward, backend=BACKEND)
        layer.forward = CompiledForward(layer.forward, compiled, shared)
    return shared


def counted_again(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, which calls a layer so that the backward pass computes it again: plainly, if it was so."""
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    def called(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(partial(_plainly, layer) if is_in_torch_dispatch_mode() else layer, *args, **kwargs)

    return called


def _plainly(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = _COUNTED.set(True)
    try:
        return layer(*args, **kwargs)
    finally:
        _COUNTED.reset(token)


def is_compiled(layer: nn.Module) -> bool:
    """Whether `compile_layers` was given this layer."""
    return type(layer.forward) is CompiledForward


def repeated_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a denoiser of diffusers that its class says to compile, or not to split.

    Raises ModelError for a class that names none.
    """
    for attribute in ('_repeated_blocks', '_no_split_modules'):
        names = {name for module in denoiser.modules() for name in getattr(type(module), attribute, None) or ()}
        lists = [module for module in denoiser.modules() if isinstance(module, nn.ModuleList)]
        found = [block for blocks in lists for block in blocks if type(block).__name__ in names]
        if found:
            return found
    raise ModelError(
        f'train_cfgs.torch_compile: {type(denoiser).__name__} does not name the blocks that repeat, which would be '
        'compiled one by one. Leave it out.'
    )


def told_of_layers(layers: Sequence[nn.Module]) -> str:
    """Says what is compiled."""
    counts = Counter(type(layer).__name__ for layer in layers)
    return ', '.join(f'{count} × {name}' for name, count in counts.items()) + ', one by one'


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else "no reason given"}'
