"""Where ranks meet before they join a process group: one that failed on its way there tells the others why.

They would wait for it until the time limit of the process group, on nodes whose launcher knows nothing of it. What goes
wrong once all have joined is for the watch (`engines/watch.py`).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from align_anything.core.distributed import is_main, rank, world_size
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger

if TYPE_CHECKING:
    from torch.distributed import Store

logger = get_logger(__name__)

ENDED_BY_ANOTHER = 2
PATIENCE = 600.0
"""Seconds that ranks wait for those that say nothing, which may still import from a slow disk."""
TOLD_AFTER = 45.0
"""Seconds after which it is told who is missing."""
LEAVING_SECONDS = 45.0
"""How long one that leaves waits until all others have come and know why."""
SEE = 'see what its launcher says.'
_PAUSE = 0.1
_FAILED, _HERE = 'failed', 'here'


def meet() -> Store:
    """Waits until all ranks are here. Returns what is to be kept until they have joined. Every rank calls it.

    Where one of them failed before, or does not come, the process ends with code 2; one rank of each node says why.
    Raises what torch does where the port that the launcher chose cannot be opened.
    """
    from torch.distributed import DistError

    try:
        store = _opened(PATIENCE)
    except DistError:
        if is_main():
            raise
        _end(_cause(f'nobody answers at {_address()} for {PATIENCE:.0f} seconds, where the ranks meet: {SEE}'))
    try:
        _wait_for_all(store)
    except DistError as error:
        _end(_cause(f'who had opened {_address()}, where the ranks meet, is gone ({error}): {SEE}'))
    return store


def tell_others(error: BaseException) -> None:
    """Tells the ranks that would wait for this one that it failed before it joined them.

    Returns when all have come, or after a while: the launcher ends the others of a node with the first one.
    """
    if world_size() < 2 or 'MASTER_PORT' not in os.environ or _joined():
        return
    words = f'{type(error).__name__}: {error}'[:4000]
    failed = _cause(
        f'rank {rank()} on {socket.gethostname()} (process {os.getpid()}) did not come to meet the others: '
    )
    failed |= {'cause': failed['cause'] + words, 'tells': is_main() or not isinstance(error, SettingsError)}
    # Who is gone need not be told.
    with suppress(RuntimeError):
        store = _opened(LEAVING_SECONDS)
        store.compare_set(_FAILED, '', json.dumps(failed))
        store.add(_HERE, 1)
        _linger(store)


def _wait_for_all(store: Store) -> None:
    begun, told = time.monotonic(), False
    store.set(f'{_HERE}/{rank()}', '')
    store.add(_HERE, 1)
    while True:
        # Asked in this order: who failed says so before it counts itself.
        complete, failed = store.add(_HERE, 0) >= world_size(), store.check([_FAILED])
        waited = time.monotonic() - begun
        if failed:
            _linger(store)
            _end(json.loads(store.get(_FAILED)))
        if complete:
            return
        if is_main() and not told and waited > TOLD_AFTER:
            told = True
            logger.warning('still waiting for %s, which may be on the way', _missing(store))
        if waited > PATIENCE:
            _end(_cause(f'{_missing(store)} did not come within {PATIENCE:.0f} seconds: {SEE}'))
        time.sleep(_PAUSE)


def _linger(store: Store) -> None:
    """Leaves others time to read why the run ends: whose launcher ends them, or who opened the store, cannot."""
    end = time.monotonic() + LEAVING_SECONDS
    while store.add(_HERE, 0) < world_size() and time.monotonic() < end:
        time.sleep(_PAUSE)
    time.sleep(10 * _PAUSE if is_main() else 5 * _PAUSE)


def _cause(words: str) -> dict[str, str | bool]:
    """Why the run ends, on which node that was, and whether it is said there already."""
    return {'node': socket.gethostname(), 'cause': words, 'tells': False}


def _joined() -> bool:
    if 'torch' not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def _opened(seconds: float) -> Store:
    """The store at which the process group will meet too, by the address that the launcher gives."""
    from torch.distributed import PrefixStore, TCPStore

    environ = os.environ
    of_agent = environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    store = TCPStore(
        environ['MASTER_ADDR'],
        int(environ['MASTER_PORT']),
        is_master=is_main() and not of_agent,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f'align_anything/{environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)


def _address() -> str:
    return f'port {os.environ["MASTER_PORT"]} of {os.environ["MASTER_ADDR"]}'


def _missing(store: Store) -> str:
    absent = [number for number in range(world_size()) if not store.check([f'{_HERE}/{number}'])]
    return f'rank {", ".join(map(str, absent[:8]))}' + (f' and {len(absent) - 8} more' if len(absent) > 8 else '')


def _end(failed: dict[str, str | bool]) -> NoReturn:
    if os.environ.get('LOCAL_RANK', '0') == '0' and not (failed['tells'] and failed['node'] == socket.gethostname()):
        logger.error('TrainingError:\n%s', failed['cause'])
    sys.exit(ENDED_BY_ANOTHER)
