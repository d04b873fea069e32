"""Taking DeepSpeed off its models again, for a process that goes on after a run."""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from typing import Any

_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(engine: Any) -> None:
    """Files an engine of DeepSpeed among those that `release_engines` ends."""
    _LIVE.add(engine)


def release_engines() -> None:
    """Ends every engine of this process, so that its model can be collected. None can be used afterwards."""
    for engine in list(_LIVE):
        engine.destroy()
    _LIVE.clear()
    _forget_modules()


def _forget_modules() -> None:
    """Empties what DeepSpeed's ZeRO-3 keeps for the life of the process, which would keep every model alive."""
    offload = sys.modules.get('deepspeed.runtime.zero.parameter_offload')
    coordinator = sys.modules.get('deepspeed.runtime.zero.partitioned_param_coordinator')
    if offload is None or coordinator is None:
        return
    # The module of the last forward pass stays on it where that was an evaluation.
    offload.FWD_MODULE_STACK.clear()
    for method in filter(inspect.isfunction, vars(coordinator.PartitionedParameterCoordinator).values()):
        for cached in filter(_is_cached, (cell.cell_contents for cell in method.__closure__ or ())):
            cached.cache_clear()


def _is_cached(value: Any) -> bool:
    return isinstance(value, functools._lru_cache_wrapper)
