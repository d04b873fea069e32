"""Many that go on by turns, none of which waits for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

T = TypeVar('T')
MOST = 256
"""How many go on at once; the others begin when one of these is over."""


def at_own_pace(items: Sequence[T], goes_on: Callable[[T, int], bool]) -> None:
    """Calls `goes_on` for each item with the turns 0, 1, 2 … until it says no, those of several items side by side.

    Raises what is raised first, when the turns that were begun by then are over.
    """
    if not items:
        return
    broken = Event()

    def run(item: T) -> None:
        turn = 0
        try:
            while not broken.is_set() and goes_on(item, turn):
                turn += 1
        except BaseException:
            broken.set()
            raise

    with ThreadPoolExecutor(min(MOST, len(items)), 'episode') as threads:
        running = [threads.submit(run, item) for item in items]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            broken.set()
            raise
    for future in done:
        future.result()
