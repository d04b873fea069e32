"""Calls of the Python API in forked processes that are as a notebook's: no launcher, no process group before."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.harness.ranks import run_ranks
from tests.trainers.runs import warm

LAUNCHED = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'LOCAL_SIZE', 'MASTER_ADDR', 'MASTER_PORT')


def in_a_process(body: Callable[[], Any]) -> Any:
    """Returns what `body()` does in a process of its own, without the drawing of curves, which takes long."""
    warm()
    import align_anything.api.policy
    import align_anything.api.training

    assert align_anything.api.policy and align_anything.api.training

    def child(rank: int) -> Any:
        import torch.distributed as dist

        from align_anything.trainers.runs import begin

        dist.destroy_process_group()
        for name in LAUNCHED:
            del os.environ[name]
        begin.plot_metrics = lambda folder: 'none'
        return body()

    return run_ranks(child, 1, timeout=600)[0]
