"""What the garbage collector has to look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Leaves what is made inside out of garbage collection, for the life of the process; so do not load models inside.

    For imports: libraries make half a million objects that stay, and the collector looked at all of them again and
    again while they were made, a sixth of what a start costs, then in each later full pass. Processes that are forked
    share the memory of what is never looked at. All that exists at the end is left out, garbage too, so call it early,
    in a process that is ours alone. Where collection is off, nothing happens.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
