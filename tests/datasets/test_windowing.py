"""Which windows a rank reads hangs on seed, epoch and row alone, and all windows of all episodes come once an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.types import Conversation, Example, Piece, Skipped
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask, Windowed
from align_anything.datasets.measuring import measure_windows
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, IndexSampler
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.windowing import AllWindows, RandomWindows
from align_anything.datasets.windows import Window, Windows
from tests.datasets.fakes import write_rows
from tests.datasets.test_sampler import CUTS, samplers


def windowed(sampler: Any, epoch: int, start: int = 0) -> list[tuple[str, Window]]:
    rows = [row for batch in sampler.micro_batches(epoch, start) for row in batch]
    assert all(isinstance(row, Windowed) for row in rows)
    return [(str(row.row if type(row.row) is int else row.row.row['number']), row.window) for row in rows]


@pytest.mark.parametrize('kind', ['index', 'stream'])
@pytest.mark.parametrize('shape', CUTS)
def test_ranks_and_resumed_runs_agree(kind: str, shape: tuple[int, int, int]) -> None:
    windows = Windows(4, seed=7)
    whole = [RandomWindows(sampler, windows) for sampler in samplers(*shape, kind)]
    (alone,) = (RandomWindows(sampler, windows) for sampler in samplers(8, 1, 1, kind))
    for epoch in range(2):
        assert sorted(pair for sampler in whole for pair in windowed(sampler, epoch)) == sorted(windowed(alone, epoch))
        for sampler in whole:
            late = windowed(sampler, epoch, 1)
            assert late == windowed(sampler, epoch)[-len(late) :] if late else True
    assert dict(windowed(alone, 0)) != dict(windowed(alone, 1))


def rows(folder: Path, lengths: list[int]) -> str:
    """Episodes of so many steps; one of no actions where there are none."""
    written = []
    for number, length in enumerate(lengths):
        turns: list[dict[str, Any]] = []
        for step in range(length):
            said = [{'type': 'text', 'text': f'Episode {number}.'}] if not step else []
            turns.append({'role': 'user', 'content': said, 'state': [step]})
            turns.append({'role': 'assistant', 'content': [{'type': 'action', 'action': [number, step]}]})
        none = [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': 'Hello.'}]
        written.append({'messages': turns or none})
    return write_rows(folder / 'rows.jsonl', written)


def encode(conversation: Conversation, train_on: str = 'all_assistant') -> Example:
    """The numbers of the actions of each turn."""
    done = [turn['content'][0]['action'].values for turn in conversation if turn['role'] == 'assistant']
    ids = torch.cat(done)[:, 1].long()
    empty = Piece(torch.empty(0, dtype=torch.int64), torch.empty(0))
    return Example(empty, [Piece(ids, torch.ones(len(ids)))], meta={'chunks': [len(chunk) for chunk in done]})


def dataset(source: str, windows: Windows) -> ExampleDataset:
    task = SupervisedTask(encode)
    return ExampleDataset(load_sources(source, 'Messages'), task, 'a_pair', frozenset({'action'}), windows=windows)


def test_a_row_is_its_window(tmp_path: Path) -> None:
    made = dataset(rows(tmp_path, [7]), Windows(5, chunk=2, seed=3))
    example = made[Windowed(0, Window(5, 2, at=1.0))]
    assert isinstance(example, Example)
    assert example.responses[0].ids.tolist() == [2, 3, 4, 5, 6] and example.meta['chunks'] == [2, 2, 1]
    assert example.meta['first_step'] == 2
    # Without a window it is always the same one.
    plain = [made[0].responses[0].ids.tolist() for _ in range(3)]
    assert plain[0] == plain[1] == plain[2] and len(plain[0]) == 5
    # For passes over all that a row shows, nothing is cut.
    assert made.of_task(made.task)[0].responses[0].ids.tolist() == list(range(7))


@pytest.mark.parametrize('windows', [Windows(3, kind='all'), Windows(None, 4, 'all')])
def test_all_windows_come_once_an_epoch(tmp_path: Path, windows: Windows) -> None:
    lengths = [5, 2, 0, 9]
    made = dataset(rows(tmp_path, lengths), windows)
    counts = measure_windows(made, windows, 0)
    assert counts == [windows.count(length) if length else 1 for length in lengths]
    seen: list[list[Any]] = []
    for rank in range(2):
        sampler = IndexSampler(Mixture([sum(counts)], seed=1), BatchShape(2, 1, 2, rank))
        found = AllWindows(sampler, windows, counts)
        batches = [made[row] for batch in found.micro_batches(0) for row in batch]
        assert found.steps_in(0) == sampler.steps_in(0)
        seen += [made if isinstance(made, Skipped) else made.responses[0].ids.tolist() for made in batches]
    (skipped,) = [made for made in seen if isinstance(made, Skipped)]
    assert 'every answer is one step of actions' in skipped.reason
    begins = Counter(steps[0] for steps in seen if not isinstance(steps, Skipped))
    assert begins == Counter(first for length in lengths if length for first in range(windows.count(length)))
