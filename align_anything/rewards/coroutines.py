"""Results of async functions, waited for by code that is not async."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar('T')


def result_of(coroutine: Coroutine[None, None, T]) -> T:
    """Returns what a coroutine returns, and raises what it raises.

    All run in one event loop of their own, in a thread: clients that a function keeps open belong to the loop that they
    were opened in, and the caller may itself be in one.
    """
    result, ended = asyncio.run_coroutine_threadsafe(_contained(coroutine), _loop_of(os.getpid())).result()
    if ended is not None:
        raise ended
    return result


async def _contained(coroutine: Coroutine[None, None, T]) -> tuple[T | None, SystemExit | None]:
    """What a coroutine returns, or its `sys.exit`, which would end the loop before anybody hears of it."""
    try:
        return await coroutine, None
    except SystemExit as ended:
        return None, ended


@functools.cache
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    # By process: a forked one has no threads of its parent.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name='async rewards', daemon=True).start()
    return loop
