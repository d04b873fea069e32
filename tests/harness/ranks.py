"""Runs a function on several ranks by forking this warm process: seconds instead of a launcher's half minute.

    def body(rank: int) -> float:
        return float(all_reduce_sum(torch.tensor(rank + 1.0)))

    assert run_ranks(body, world_size=2) == [3.0, 3.0]

`body` may be a closure. Each child has the launcher's environment variables and a gloo process group; whatever it
returns is pickled back. A child that raises, dies or hangs makes `RanksError` with every rank's traceback.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

# Once a rank has failed, its peers sit in a collective: they get this long to fail by themselves.
GRACE_SECONDS = 3.0
# What a rank imports of these, the process that it was forked from imports too, once the test has ended: no rank to
# come has to. Only of those that it has begun with: nothing brings vLLM into a process that does not ask for it.
KEPT = {'align_anything', 'deepspeed', 'diffusers', 'peft', 'torchvision', 'transformers', 'vllm'}
_imported: dict[str, None] = {}


def run_ranks(
    function: Callable[..., Any],
    world_size: int = 2,
    timeout: float = 120.0,
    args: tuple[Any, ...] = (),
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Calls `function(rank, *args)` in `world_size` forked processes; returns their results in rank order.

    `env` adds environment variables to the children. Raises RanksError when a rank raises, dies or takes longer
    than `timeout` seconds (every child is killed first), and RuntimeError when this process cannot be forked safely.
    """
    check_forkable()
    with tempfile.TemporaryDirectory(prefix='ranks-') as folder:
        port = free_port()
        sys.stdout.flush()
        sys.stderr.flush()
        children = {}
        for rank in range(world_size):
            child = os.fork()
            if child == 0:
                _child(function, args, rank, world_size, timeout, Path(folder), port, env or {})
            children[rank] = child
        statuses, timed_out = _wait(children, timeout, Path(folder))
        outcomes = [_read(Path(folder), rank, statuses[rank]) for rank in range(world_size)]
    _imported.update(dict.fromkeys(name for outcome in outcomes for name in outcome.imported))
    if timed_out or any(outcome.error for outcome in outcomes):
        raise RanksError(outcomes, timeout if timed_out else None)
    return [outcome.value for outcome in outcomes]


def import_what_ranks_did() -> None:
    """Imports what ranks had to import. Between tests, or modules would keep what a test had put in place of another.

    What only a rank can import, from a folder that its test made, stays with it.
    """
    while _imported:
        name = next(iter(_imported))
        del _imported[name]
        with suppress(ImportError):
            importlib.import_module(name)


@dataclass
class Outcome:
    """What became of one rank: its value, or the kind and text of its error, and the modules that it imported."""

    rank: int
    value: Any = None
    kind: str = ''
    error: str = ''
    imported: Sequence[str] = ()


class RanksError(AssertionError):
    """At least one rank failed. `kinds` has the exception class name (or signal name) of each rank, '' when well."""

    def __init__(self, outcomes: list[Outcome], timeout: float | None) -> None:
        self.kinds = [outcome.kind for outcome in outcomes]
        head = f'ranks did not finish in {timeout:g} s' if timeout else 'ranks failed'
        bodies = [f'--- rank {outcome.rank} ---\n{outcome.error}' for outcome in outcomes if outcome.error]
        super().__init__('\n'.join([f'{head}: {self.kinds}', *bodies]))


def check_forkable() -> None:
    """Raises RuntimeError where a fork of this process would not live."""
    if dist.is_initialized():
        raise RuntimeError('this process has a process group already: run that code in run_ranks(..., world_size=1)')
    if torch.cuda.is_initialized():
        raise RuntimeError('CUDA is in use in this process, so it cannot be forked: keep GPU work in children')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _child(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    timeout: float,
    folder: Path,
    port: int,
    env: dict[str, str],
) -> NoReturn:
    """Runs one rank and never returns: leaving through pytest's stack would run its teardown twice."""
    code = 1
    # What earlier tests left for the collector may wait for threads that a child does not have.
    gc.freeze()
    before = {*sys.modules}
    try:
        with open(folder / f'{rank}.trace', 'w') as trace:
            faulthandler.register(signal.SIGUSR1, file=trace, all_threads=True)
            outcome = _outcome(function, args, rank, world_size, timeout, folder, port, env)
            known = KEPT & before
            outcome.imported = [name for name in sys.modules if name.partition('.')[0] in known and name not in before]
            try:
                data = pickle.dumps(outcome)
            except (pickle.PicklingError, TypeError, AttributeError):
                text = f'the result cannot be pickled: {outcome.value!r}\n{traceback.format_exc()}'
                data = pickle.dumps(Outcome(rank, kind='PicklingError', error=text, imported=outcome.imported))
            (folder / f'{rank}.part').write_bytes(data)
            os.replace(folder / f'{rank}.part', folder / f'{rank}.result')
            code = 1 if outcome.error else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _outcome(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    timeout: float,
    folder: Path,
    port: int,
    env: dict[str, str],
) -> Outcome:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME='lo',
        OMP_NUM_THREADS='1',
        **env,
    )
    if 'deepspeed' in sys.modules:
        # As engines.process_group does; here for tests that partition a model before any engine joins.
        vars(sys.modules['deepspeed'].ops).setdefault('__compatible_ops__', {})['deepspeed_shm_comm'] = False
    try:
        torch.set_num_threads(1)
        # A file needs no port, so two tests that start at once cannot take each other's.
        dist.init_process_group(
            'gloo',
            init_method=f'file://{folder}/store',
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        return Outcome(rank, value=function(rank, *args))
    except BaseException as error:
        return Outcome(rank, kind=type(error).__name__, error=traceback.format_exc())


def _wait(children: dict[int, int], timeout: float, folder: Path) -> tuple[dict[int, int], bool]:
    """Reaps the children; returns their wait statuses and whether time ran out. No child is left behind."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + timeout
    failed = False
    try:
        while len(statuses) < len(children) and time.monotonic() < end:
            for rank, child in children.items():
                if rank in statuses:
                    continue
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[rank] = status
                    if status != 0 and not failed:
                        failed = True
                        end = min(end, time.monotonic() + GRACE_SECONDS)
            time.sleep(0.005)
        return statuses, len(statuses) < len(children) and not failed
    finally:
        left = {rank: child for rank, child in children.items() if rank not in statuses}
        for child in left.values():
            os.kill(child, signal.SIGUSR1)
        if left:
            time.sleep(0.3)
        for rank, child in left.items():
            os.kill(child, signal.SIGKILL)
            statuses[rank] = os.waitpid(child, 0)[1]


def _read(folder: Path, rank: int, status: int) -> Outcome:
    result = folder / f'{rank}.result'
    if result.exists():
        return pickle.loads(result.read_bytes())
    kind = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f'exit {os.WEXITSTATUS(status)}'
    trace = folder / f'{rank}.trace'
    stack = trace.read_text() if trace.exists() else ''
    return Outcome(rank, kind=kind, error=f'ended by {kind} without a result; where it stood:\n{stack or "(no trace)"}')
