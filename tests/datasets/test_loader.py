"""The same batches for any number of workers, from any point on; errors and signals arrive as they were sent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import DataError
from align_anything.core.types import Batch, Example, Skipped
from align_anything.datasets.loader import Loader
from align_anything.datasets.mixture import Mixture, StreamMixture
from align_anything.datasets.sampler import BatchShape, IndexSampler, StreamSampler
from tests.datasets.fakes import collate, make_dataset, write_rows

ROWS = [{'instruction': f'question {number}', 'output': 'x' * (number % 5)} for number in range(23)]


def make_loader(source: str, workers: int, streaming: bool = False, shape: BatchShape | None = None) -> Loader:
    dataset = make_dataset(source, streaming=streaming)
    shape = shape or BatchShape(per_device=2, accumulation=2)
    if streaming:
        sampler: Any = StreamSampler(
            StreamMixture([source.rows for source in dataset.sources], seed=5, buffer_size=7), shape
        )
    else:
        sampler = IndexSampler(Mixture(dataset.sizes, seed=5), shape)
    return Loader(dataset, sampler, collate, num_workers=workers)


def content(batch: Batch) -> tuple[Any, ...]:
    return batch.inputs['ids'].tolist(), batch.sources, batch.skipped, batch.num_responses


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Rows of which every fifth has an empty answer and is left out."""
    return write_rows(tmp_path / 'a.jsonl', ROWS)


@pytest.mark.parametrize('streaming', [False, True])
def test_same_batches_for_any_number_of_workers(source: str, streaming: bool) -> None:
    expected: list[Any] = []
    for workers in (0, 1, 3):
        loader = make_loader(source, workers, streaming)
        found = [[content(batch) for batch in loader.micro_batches(epoch)] for epoch in (0, 1)]
        resumed = [content(batch) for batch in loader.micro_batches(1, start_step=3)]
        loader.close()
        expected = expected or found
        assert found == expected
        assert resumed == expected[1][6:], 'two micro-batches to a step'
    first, second = expected
    assert first != second
    names = sorted(name for _, sources, skipped, _ in first for name in (*sources, *(row.source for row in skipped)))
    assert names == sorted(f'{source}:{line}' for line in range(1, 24))
    assert sum(len(skipped) for _, _, skipped, _ in first) == 5  # rows 0, 5, 10, 15, 20 have no answer


def test_leaving_an_epoch_early_leaves_nothing_behind(source: str) -> None:
    loader = make_loader(source, 2)
    whole = [content(batch) for batch in loader.micro_batches(1)]
    for _ in zip(range(2), loader.micro_batches(0), strict=False):
        pass
    assert [content(batch) for batch in loader.micro_batches(1)] == whole
    loader.close()


def test_steps_hold_all_micro_batches_also_empty_ones(tmp_path: Path) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'instruction': 'a', 'output': 'b'}] * 5)
    # 5 rows, 2 x 2 x 1 rank = 4 to a step: the second holds one row and an empty micro-batch.
    loader = make_loader(source, 1)
    assert loader.steps_in(0) == 2
    assert [[batch.num_responses for batch in step] for step in loader.steps(0)] == [[2, 2], [1, 0]]
    # The fourth of four ranks gets no row at all, but as many micro-batches as the others.
    last_rank = make_loader(source, 1, shape=BatchShape(2, 2, 4, rank=3))
    assert [[batch.num_responses for batch in step] for step in last_rank.steps(0)] == [[1, 0]]
    loader.close()
    last_rank.close()


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_arrives_with_its_class_and_bare_message(source: str, workers: int) -> None:
    loader = make_loader(source, workers)
    loader.dataset.task = Refusing()
    with pytest.raises(DataError) as caught:
        list(loader.micro_batches(0))
    assert str(caught.value) == 'this run makes no sense'
    loader.close()


class Refusing:
    needs_reply = True
    needs_other = False

    def format(self, formatter: Any, row: Any, other: Any = None) -> Any:
        raise DataError('this run makes no sense')

    def encode(self, conversations: Any) -> Example:
        raise AssertionError


def report_process(examples: list[Example], skipped: list[Skipped]) -> Batch:
    batch = collate(examples, skipped)
    batch.stats = {
        'process': os.getpid(),
        'threads': torch.get_num_threads(),
        'tokenizers off': int(os.environ.get('TOKENIZERS_PARALLELISM') == 'false'),
    }
    return batch


def test_collation_runs_in_the_worker_on_one_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TOKENIZERS_PARALLELISM', 'true')
    dataset = make_dataset(source)
    sampler = IndexSampler(Mixture(dataset.sizes, seed=5), BatchShape(4))
    loader = Loader(dataset, sampler, report_process, num_workers=1)
    stats = [batch.stats for batch in loader.micro_batches(0)]
    assert {record['process'] for record in stats} != {os.getpid()}
    assert {(record['threads'], record['tokenizers off']) for record in stats} == {(1, 1)}
    assert os.environ['TOKENIZERS_PARALLELISM'] == 'true'
    loader.close()


def test_starting_draws_nothing_from_the_global_generator(source: str) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = make_loader(source, workers)
        next(iter(loader.micro_batches(0)))
        loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_a_signal_that_is_meant_for_the_trainer(source: str) -> None:
    others = multiprocessing.active_children()
    loader = make_loader(source, 2)
    batches = loader.micro_batches(0)
    found = [content(next(batches)) for _ in range(2)]  # each worker gave one, so both have set their handlers
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    for worker in workers:  # from another process, as a launcher sends it
        subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    found += [content(batch) for batch in batches]
    assert found == [content(batch) for batch in make_loader(source, 0).micro_batches(0)]
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # from the trainer itself
    workers[0].join(5)
    assert not workers[0].is_alive()
    workers[1].terminate()
    workers[1].join(5)


def test_a_trainer_that_fails_does_not_wait_for_its_workers(source: str) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.datasets.test_loader import make_loader
loader = make_loader({source!r}, 2)
batches = loader.micro_batches(0)
next(batches)
print('started', flush=True)
raise SystemExit(7)
"""
    child = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == 'started\n'
    start = time.monotonic()
    assert child.wait(30) == 7
    assert time.monotonic() - start < 15


def test_a_killed_worker_is_an_error_and_not_a_hang(source: str) -> None:
    others = multiprocessing.active_children()
    loader = make_loader(source, 1)
    batches = loader.micro_batches(0)
    next(batches)
    (worker,) = [child for child in multiprocessing.active_children() if child not in others]
    with pytest.raises(RuntimeError, match='worker'):
        os.kill(worker.pid, signal.SIGKILL)  # torch raises from its handler of the signal that a child ended
        worker.join(10)
        list(batches)


def test_examples_know_the_epoch_in_which_they_are_seen(source: str) -> None:
    def epochs(examples: list[Example], skipped: list[Skipped]) -> list[int]:
        return [example.epoch for example in examples]

    dataset = make_dataset(source)
    loader = Loader(dataset, IndexSampler(Mixture(dataset.sizes, seed=5), BatchShape(per_device=4)), epochs, 1)
    for epoch in (2, 0):
        found = [number for numbers in loader.micro_batches(epoch) for number in numbers]
        assert len(found) > 10 and set(found) == {epoch}
    loader.close()
