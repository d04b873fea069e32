"""Collectives with and without a process group."""

from __future__ import annotations

import pytest
import torch

from align_anything.core import distributed
from tests.harness.ranks import run_ranks


def test_without_a_group_everything_is_local() -> None:
    tensor = torch.tensor([1.0, 2.0])
    total = distributed.all_reduce_sum(tensor)
    assert distributed.rank() == 0 and distributed.world_size() == 1 and distributed.is_main()
    assert total.tolist() == [1.0, 2.0] and total is not tensor
    assert distributed.all_gather_object('a') == ['a']
    assert distributed.broadcast_object('a') == 'a'
    distributed.barrier()


def test_two_ranks() -> None:
    def body(rank: int) -> tuple:
        mine = torch.tensor([rank + 1.0])
        total = distributed.all_reduce_sum(mine)
        distributed.barrier()
        return (
            total.item(),
            mine.item(),
            distributed.all_gather_object({'rank': rank}),
            distributed.broadcast_object(f'from {rank}'),
            distributed.is_main(),
        )

    # 1 + 2 = 3, and the argument keeps its own value.
    gathered = [{'rank': 0}, {'rank': 1}]
    assert run_ranks(body, world_size=2, timeout=60) == [
        (3.0, 1.0, gathered, 'from 0', True),
        (3.0, 2.0, gathered, 'from 0', False),
    ]


def test_launcher_variables_count_before_the_group_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert distributed.rank() == 3 and distributed.world_size() == 4 and not distributed.is_main()
    with pytest.raises(RuntimeError, match='4 ranks before the process group exists'):
        distributed.all_reduce_sum(torch.ones(1))
