"""Calls of the Python API in one forked process each, as a notebook's: no launcher, no process group before."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.ranks import run_ranks
from tests.trainers.runs import warm


@pytest.fixture(scope='session')
def in_a_process() -> Callable[[Callable[[], Any]], Any]:
    """`in_a_process(body)` returns what `body()` does in a process of its own."""
    warm()
    import align_anything.api.policy
    import align_anything.api.training

    assert align_anything.api.policy and align_anything.api.training

    def run(body: Callable[[], Any]) -> Any:
        def child(rank: int) -> Any:
            import torch.distributed as dist

            from align_anything.trainers.runs import begin

            dist.destroy_process_group()
            for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'LOCAL_SIZE', 'MASTER_ADDR'):
                del os.environ[name]
            del os.environ['MASTER_PORT']
            begin.plot_metrics = lambda folder: 'none'
            return body()

        return run_ranks(child, 1)[0]

    return run
