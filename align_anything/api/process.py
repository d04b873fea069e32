"""A run inside of a process that goes on afterwards, such as that of a notebook."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from align_anything.core.errors import AlignAnythingError
from align_anything.engines.process_group import leave_process_group
from align_anything.engines.release import release_engines


@contextmanager
def guest() -> Iterator[None]:
    """Leaves the process as it was when the block ends: what handles signals, and no group or model of the run.

    A process that a launcher started, or that has a process group, keeps its group for the next run.
    """
    alone = 'RANK' not in os.environ and not dist.is_initialized()
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield
    except (AlignAnythingError, KeyboardInterrupt) as error:
        _let_go(error)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        release_engines()
        # Engines and models refer to each other in circles.
        gc.collect()
        if alone:
            leave_process_group()
        torch.cuda.empty_cache()


def _let_go(error: BaseException) -> None:
    """Empties the frames of an error that says all there is to say: notebooks keep it, and the models in them with it.

    Other errors are for a debugger.
    """
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
