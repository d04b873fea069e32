"""What a run tells of how well it uses its devices: operations a second, where time goes, who holds the others up."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from align_anything.core.flops import Flops
from align_anything.core.logging import get_logger
from align_anything.models.compiling import compile_layers
from align_anything.trainers.loops import meter
from align_anything.trainers.loops.meter import LOOKED_AT, TIMED, TIMED_EVERY, Meter
from align_anything.trainers.loops.own_time import OwnTime
from tests.harness.ranks import run_ranks
from tests.trainers.runs import lines, sft, succeed, text_rows, write_rows


def test_operations_a_second_and_what_time_goes_to() -> None:
    found = Meter(peak=4e12).read(
        Flops(2e12, 4e12, 3e12), computed=3.0, took=10.0, seconds={'data': 1.0, 'update': 3.0, 'generation_ahead': 9.0}
    )
    assert found == {'share/data': 0.1, 'share/update': 0.3, 'tflops': 2.0, 'mfu': 0.5, 'recomputed': 0.5}
    assert 'mfu' not in Meter().read(Flops(2e12), 1.0, 1.0, {})
    assert Meter(peak=1.0).read(Flops(), 1.0, 2.0, {'data': 1.0}) == {'share/data': 0.5}


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the meter warns of meanwhile."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = get_logger('align_anything.trainers.loops.meter'), Kept()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def warned(seconds: dict[str, float], work: float = 1.0, reports: int = LOOKED_AT + 3) -> list[str]:
    """The warnings of this rank when every step takes ten seconds."""
    own = Meter()
    with listening() as found:
        for _ in range(reports):
            own.read(Flops(work), 1.0, 10.0, seconds)
    return found


@pytest.mark.parametrize(('seconds', 'said'), [
    ({'data': 4.0}, 'the loader holds the run up: 40% of 40 seconds went to waiting for rows. Raise data_cfgs.num_wor'),
    ({'data': 0.1, 'reward': 3.0}, 'rewards hold the run up: 30% of 40 seconds went to them. Give rewards'),
    ({'data': 0.1, 'reward': 1.0, 'generation': 5.0}, None),
])  # fmt: skip
def test_what_holds_a_run_up_is_told_once(seconds: dict[str, float], said: str | None) -> None:
    found = warned(seconds)
    assert len(found) == (said is not None) and all(text.startswith(said) for text in found)
    assert not warned(seconds, reports=LOOKED_AT - 1)


def test_a_loader_that_fills_a_cache_in_the_first_pass_is_left_alone() -> None:
    own, reads = Meter(), (Flops(1.0), 1.0, 10.0, {'data': 6.0, 'reward': 3.0})
    with listening() as found:
        for _ in range(LOOKED_AT + 3):
            assert own.read(*reads, first_pass=True)['share/data'] == 0.6
        # What else holds the run up is told all the same.
        assert [text.partition(':')[0] for text in found] == ['rewards hold the run up']
        for _ in range(LOOKED_AT):
            own.read(*reads)
    assert len(found) == 2 and found[1].startswith('the loader holds the run up')


def test_a_rank_that_holds_the_others_up_is_told_with_its_number() -> None:
    def body(rank: int) -> tuple[list[str], dict[str, float]]:
        seconds = {'generation': 2.0 + 6.0 * (rank == 1), 'data': 0.0}
        found = Meter().read(Flops(1e12 * (1 + 2 * (rank == 1))), 1.0, 10.0, seconds)
        return warned(seconds, 1.0 + 2 * (rank == 1)), found

    (said, found), (elsewhere, same) = run_ranks(body, 2)
    assert elsewhere == [] and same == found
    assert found['busiest_rank'] == 1.5 and found['tflops'] == 2.0
    # The mean rank generates 5 seconds of 10, and the longest 8.
    assert found['share/wait'] == pytest.approx(0.3) and found['share/generation'] == pytest.approx(0.5)
    assert [text.partition('.')[0] for text in said] == [
        'ranks wait for the one that generates longest: 30% of 40 seconds, in the mean',
        'rank 1 holds the others up: it has 1',
    ]


def test_a_rank_that_waits_for_rows_or_rewards_alone_is_named() -> None:
    def body(rank: int) -> list[str]:
        socket.gethostname = lambda: f'node-{rank}'
        return warned({'data': 0.2 + 4.0 * (rank == 2), 'reward': 3.0 + 3.0 * (rank == 0)})

    said, *_ = run_ranks(body, 3)
    assert [text.partition('. ')[0] for text in said] == [
        'the loader holds the run up: 42% of 40 seconds went to waiting for rows, on rank 2 (node-2); on the others 2%',
        'rewards hold the run up: 60% of 40 seconds went to them, on rank 0 (node-0); on the others 30%',
    ]


@pytest.mark.parametrize('slow', [True, False])
def test_a_rank_that_computes_slowly_is_named_though_all_wait_in_collectives(slow: bool) -> None:
    def body(rank: int) -> list[str]:
        class Layer(nn.Linear):
            def forward(self, given: Tensor) -> Tensor:
                time.sleep(0.04 if slow and rank == 1 else 0.01)
                return super().forward(given)

        socket.gethostname = lambda: f'node-{rank}'
        own, model = Meter(), nn.Sequential(Layer(2, 2), Layer(2, 2))
        with listening() as found:
            for _ in range(TIMED_EVERY * TIMED):
                with own.timing(model):
                    model(torch.zeros(1, 2))
                    dist.barrier()
                own.read(Flops(1.0), 1.0, 10.0, {'data': 0.0})
        return found

    said, elsewhere = run_ranks(body, 2)
    assert len(said) == slow and not elsewhere
    assert all(
        re.match(r'rank 1 on node-1 holds the others up: it computes [234]\.\d times as long', text) for text in said
    )


def test_a_compiled_layer_is_timed_as_a_whole_and_never_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = []

    class Inner(nn.Linear):
        def forward(self, given: Tensor) -> Tensor:
            hooks.append(len(self._forward_hooks))
            time.sleep(0.01)
            return super().forward(given)

    monkeypatch.setattr(torch, 'compile', lambda forward, **_: forward)
    layer, own = nn.Sequential(Inner(2, 2), Inner(2, 2)), OwnTime()
    compile_layers([layer])
    with own.watching(nn.Sequential(layer, nn.ReLU())):
        layer(torch.zeros(1, 2))
    assert hooks == [0, 0] and own.take() >= 0.02 and own.take() == 0


@pytest.mark.extended
@pytest.mark.parametrize(
    'engine', [{'ds_cfgs': 'ds_z3_config.json'}, {'engine': 'fsdp', 'ds_cfgs': None}], ids=['z3', 'fsdp']
)
def test_a_slow_rank_is_named_where_each_layer_waits_for_weights(
    engine: dict[str, str | None], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def slows(rank: int) -> None:
        meter.TELLING = 0.0
        forward = nn.Linear.forward

        def slowly(self: nn.Linear, given: Tensor) -> Tensor:
            time.sleep(0.004)
            return forward(self, given)

        if rank == 1:
            nn.Linear.forward = slowly

    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(64))
    steps = TIMED_EVERY * TIMED
    told = succeed(sft(tmp_path / 'run', tiny('llama'), rows, max_steps=steps, **engine), 2, before=slows)
    assert f'rank 1 on {socket.gethostname()} holds the others up: it computes' in told


def test_a_run_tells_its_operations_and_writes_a_profile(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(8))
    succeed(sft(tmp_path / 'run', tiny('llama'), rows, max_steps=4, peak_tflops=0.5, profile=2))
    for record in lines(tmp_path / 'run' / 'timings.jsonl'):
        assert 0 < record['train/tflops'] == pytest.approx(0.5 * record['train/mfu'])
        assert 0 < record['train/recomputed'] < 0.5 and record['train/share/data'] == record['train/data_wait']
    table = (tmp_path / 'run' / 'profile' / 'steps.txt').read_text().splitlines()
    phases = {line.split()[0]: line.split()[1:] for line in table[1 : table.index('')]}
    assert phases.keys() == {'data', 'forward', 'backward', 'optimizer'}
    # Of each step one micro-batch.
    assert all(float(host) > 0 and float(calls) == 1.0 for host, _, calls in phases.values())
    assert any(line.startswith('aten::mm') for line in table)
    trace = json.loads(gzip.decompress((tmp_path / 'run' / 'profile' / 'rank0.json.gz').read_bytes()))
    assert {'forward', 'backward'} <= {event.get('name') for event in trace['traceEvents']}
