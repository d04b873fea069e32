"""Servers of vLLM in processes that are forked from this warm one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx2

from align_anything.rollouts import vllm_server
from tests.harness.ranks import free_port

PATIENCE = 60.0


@contextmanager
def vllm_servers(
    number: int, host: str = '127.0.0.1', options: Sequence[str] = ()
) -> Iterator[tuple[list[str], list[int]]]:
    """Runs servers, with such options, as long as the context lasts; gives their addresses and the processes."""
    ports = [free_port() for _ in range(number)]
    processes = [_forked(host, port, options) for port in ports]
    urls = [f'http://{host}:{port}' for port in ports]
    try:
        for url in urls:
            _wait(url)
        yield urls, processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                # One that has processes of its own ends them.
                os.kill(process, signal.SIGTERM if options else signal.SIGKILL)
            os.waitpid(process, 0)


def _forked(host: str, port: int, options: Sequence[str]) -> int:
    process = os.fork()
    if process == 0:
        try:
            vllm_server.main(['--host', host, '--port', str(port), *options])
        finally:
            os._exit(1)
    return process


def _wait(url: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(httpx2.TransportError):
            if httpx2.get(f'{url}/health').status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f'{url} did not start')
