"""The fork harness itself: results, errors, deaths and hangs must all come back."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers  # noqa: F401

from align_anything.core.distributed import all_reduce_sum, rank, world_size
from tests.harness.ranks import RanksError, import_what_ranks_did, run_ranks


def test_returns_every_ranks_value_in_order() -> None:
    offset = 10  # a closure: nothing has to be importable

    def body(number: int, factor: int) -> tuple[int, int, float]:
        assert number == rank()
        return number, world_size(), float(all_reduce_sum(torch.tensor(float(offset + number * factor))))

    # (10 + 0 * 2) + (10 + 1 * 2) = 22
    assert run_ranks(body, world_size=2, timeout=60, args=(2,)) == [(0, 2, 22.0), (1, 2, 22.0)]


def test_environment_reaches_the_children_only() -> None:
    assert run_ranks(lambda _: os.environ['FLAVOUR'], world_size=1, env={'FLAVOUR': 'salt'}) == ['salt']
    assert 'FLAVOUR' not in os.environ and 'RANK' not in os.environ


def test_an_error_comes_back_with_its_traceback_while_the_peer_waits() -> None:
    def body(number: int) -> None:
        if number == 1:
            raise ValueError('rank one is unwell')
        all_reduce_sum(torch.ones(1))

    start = time.monotonic()
    with pytest.raises(RanksError, match='rank one is unwell') as caught:
        run_ranks(body, world_size=2, timeout=60)
    assert caught.value.kinds[1] == 'ValueError'
    assert time.monotonic() - start < 30


def test_a_death_is_named() -> None:
    with pytest.raises(RanksError, match='SIGKILL'):
        run_ranks(lambda _: os.kill(os.getpid(), signal.SIGKILL), world_size=1, timeout=60)


def test_a_hang_is_killed_and_shows_where_it_stood() -> None:
    def sleeps_forever(_: int) -> None:
        time.sleep(1000)

    with pytest.raises(RanksError, match='did not finish in 2 s') as caught:
        run_ranks(sleeps_forever, world_size=1, timeout=2)
    assert 'sleeps_forever' in str(caught.value)


def test_a_result_that_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(RanksError, match='cannot be pickled'):
        run_ranks(lambda _: lambda: None, world_size=1)


def test_refuses_a_process_that_has_a_group() -> None:
    def body(_: int) -> None:
        run_ranks(lambda _: None, world_size=1)

    with pytest.raises(RanksError, match='has a process group already'):
        run_ranks(body, world_size=1)


def test_what_a_rank_imported_is_there_for_the_next_once_the_test_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    module = 'transformers.models.mamba.configuration_mamba'
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def body(_: int) -> None:
        importlib.import_module(module)
        # Neither of a package that is kept nor importable elsewhere.
        importlib.import_module('once')
        sys.modules['transformers.made_up'] = ModuleType('transformers.made_up')

    run_ranks(body, world_size=1)
    assert module not in sys.modules
    import_what_ranks_did()
    assert module in sys.modules and 'once' not in sys.modules and 'transformers.made_up' not in sys.modules


def test_what_the_parent_left_to_the_collector_is_not_collected_in_a_child() -> None:
    parent = os.getpid()

    class Left:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if os.getpid() != parent:
                os._exit(9)

    gc.disable()
    try:
        Left()
        assert run_ranks(lambda rank: gc.collect() >= 0, 1) == [True]
    finally:
        gc.enable()
