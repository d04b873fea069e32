"""A rank that is gone ends the others, and one of each node says which it was and why."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from align_anything.core.errors import DataError, SettingsError
from align_anything.engines import watch
from align_anything.engines.watch import watched
from tests.harness.ranks import RanksError, run_ranks
from tests.trainers.runs import die, warm

Body = Callable[[int], Any]


def ends(folder: Path, body: Body, ranks: int = 2, nodes: bool = False) -> tuple[list[str], list[str]]:
    """What each rank came to, and what it wrote, when all run `body` under the watch; on a node each, if asked."""
    warm()

    def watching(rank: int) -> Any:
        if nodes:
            socket.gethostname = lambda: f'node-{rank + 1}'
        watch.OUT_SECONDS, watch.DOUBT_SECONDS, watch.LEAVING_SECONDS = 0.5, 0.2, 0.5
        with open(folder / str(rank), 'w', buffering=1) as file, redirect_stderr(file):
            os.dup2(file.fileno(), 2)
            with watched():
                return body(rank)

    kinds = [''] * ranks
    try:
        run_ranks(watching, ranks, timeout=30.0)
    except RanksError as error:
        kinds = error.kinds
    return kinds, [(folder / str(rank)).read_text() for rank in range(ranks)]


def waits() -> None:
    """Waits for another rank as a collective of NCCL does: for ever."""
    time.sleep(60)


@pytest.mark.parametrize('hub', [pytest.param(True, marks=pytest.mark.extended), False], ids=['hub', 'another'])
def test_a_killed_rank_ends_the_others(tmp_path: Path, hub: bool) -> None:
    victim = 0 if hub else 1
    kinds, (first, second, third) = ends(tmp_path, lambda rank: die() if rank == victim else waits(), 3)
    assert kinds == ['SIGKILL' if rank == victim else 'exit 2' for rank in range(3)]
    told = second if hub else first
    assert f'ERROR TrainingError:\nrank {victim} on {socket.gethostname()} (process ' in told
    assert 'was killed, or crashed: it ended without a word' in told and '--resume auto' in told
    assert not third and 'Traceback' not in told, 'one rank of a node speaks'


def test_what_a_rank_raised_is_told_on_every_node(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        if rank == 1:
            raise DataError('rows.jsonl is not there.')
        waits()

    kinds, (first, second) = ends(tmp_path, body, nodes=True)
    assert kinds == ['exit 2', 'DataError']
    assert 'rank 1 on node-2 (process ' in first and 'raised DataError: rows.jsonl is not there.' in first
    assert not second, 'what it raises is printed by who catches it'


@pytest.mark.extended
def test_settings_that_one_rank_alone_finds_wrong_are_told(tmp_path: Path) -> None:
    """Else rank 0 alone tells of such, for all find them wrong."""

    def body(rank: int) -> None:
        if rank == 1:
            raise SettingsError(['the folder is not there'])
        waits()

    kinds, (first, second) = ends(tmp_path, body)
    assert kinds == ['exit 2', 'SettingsError']
    assert 'raised SettingsError: - the folder is not there' in first and not second


@pytest.mark.extended
def test_what_a_rank_raises_because_of_another_is_not_the_cause(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        if rank == 0:
            # As when a peer's connection is reset, before anything is known of the peer.
            raise RuntimeError('Connection closed by peer')
        time.sleep(0.1)
        raise ValueError('the tokenizer has no such token')

    kinds, (first, _) = ends(tmp_path, body, nodes=True)
    assert kinds == ['exit 2', 'ValueError']
    assert 'rank 1 on node-2' in first and 'raised ValueError: the tokenizer has no such token' in first
    assert 'Connection closed' not in first


@pytest.mark.extended
def test_an_error_of_torch_is_the_cause_where_there_is_no_other(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        if rank == 1:
            raise RuntimeError('out of memory')
        waits()

    kinds, (first, _) = ends(tmp_path, body, nodes=True)
    assert kinds == ['exit 2', 'RuntimeError'] and 'raised RuntimeError: out of memory' in first


@pytest.mark.extended
def test_a_rank_that_leaves_early_ends_the_others_and_one_that_is_done_does_not(tmp_path: Path) -> None:
    def leaves(rank: int) -> None:
        if rank == 1:
            sys.exit(143)
        waits()

    def is_done(rank: int) -> list[str]:
        dist.barrier()
        time.sleep(0.5 * rank)
        return [one.name for one in threading.enumerate()]

    kinds, (first, _) = ends(tmp_path, leaves)
    assert kinds[0] == 'exit 2' and 'left the run with code 143, before its end' in first
    assert ends(tmp_path, is_done) == (['', ''], ['', ''])


def test_children_that_a_rank_forked_do_not_keep_it_alive_for_the_others(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        if rank == 1:
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            die()
        waits()

    started = time.monotonic()
    kinds, _ = ends(tmp_path, body)
    assert kinds == ['exit 2', 'SIGKILL'] and time.monotonic() - started < 15


@pytest.mark.extended
def test_ranks_that_cannot_reach_the_hub_run_unwatched_and_say_so(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        dist.barrier()

    inner = watch._connected

    def refused(address: str, port: int) -> socket.socket:
        if dist.get_rank() == 1:
            raise ConnectionRefusedError('refused')
        return inner(address, port)

    watch._connected = refused
    try:
        kinds, (first, second) = ends(tmp_path, body)
    finally:
        watch._connected = inner
    assert kinds == ['', ''] and 'does not reach 127.0.0.1' in first and 'only after minutes' in first and not second
