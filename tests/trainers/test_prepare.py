"""The stage before training: what is stored is not made again, and ranks that write must see one folder."""

from __future__ import annotations

import io
import logging
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load

from align_anything.algorithms.dpo import DPO
from align_anything.core.errors import SettingsError
from align_anything.core.store import TensorStore
from align_anything.core.types import Example, Piece, Skipped
from align_anything.reporting import console
from align_anything.reporting.console import StageConsole
from align_anything.trainers.runs import prepare
from align_anything.trainers.runs import reference as module
from align_anything.trainers.runs.output_folder import require_shared
from tests.harness.ranks import run_ranks
from tests.trainers.runs import die, run, sft, succeed, warm, write_rows
from tests.trainers.test_reference import ROWS, opened, pairs


def test_a_complete_cache_needs_no_copy_and_the_log_counts_all_ranks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    warm()
    # Twice the same rows, which count once wherever they come up.
    model, rows = tiny('llama'), write_rows(tmp_path / 'rows.jsonl', pairs(ROWS) * 2)
    # Not the precision of the policy, so that it is no reference itself.
    settings = {'reference_cache_dir': tmp_path / 'cache', 'reference_dtype': 'bf16'}

    def work(rank: int) -> tuple[list[str], list[int]]:
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        prepare.logger.addHandler(handler)
        loaded: list[int] = []
        inner = module.frozen_copy

        def counted(*given: Any) -> Any:
            loaded.append(1)
            return inner(*given)

        module.frozen_copy = counted
        found = []
        for _ in range(2):
            opened(DPO, tmp_path / 'run', model, rows, **settings)
            found.append(len(loaded))
        return [line for line in said if 'entries made' in line], found

    for said, loaded in run_ranks(work, 2):
        assert [line.split(' entries')[0] for line in said] == [f'reference scores: {n}' for n in (2 * ROWS, 0)]
        assert loaded == [1, 1]


def test_ranks_that_do_not_see_one_folder_are_told(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        require_shared(tmp_path, 'a_cfgs.folder', 'Ranks divide the work')
        own = tmp_path / f'node{rank}'
        own.mkdir()
        with pytest.raises(SettingsError, match=r'a_cfgs.folder: .* not seen by 1 of them, on .* Ranks divide'):
            require_shared(own, 'a_cfgs.folder', 'Ranks divide the work')

    run_ranks(work, 2)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


@dataclass(frozen=True)
class Multiples:
    """Makes so many times the token ids of each prompt."""

    store: TensorStore
    factor: int
    asked: list[int]
    name: str = 'multiples'

    def keys(self, example: Example) -> list[str]:
        return [self.store.key(example.prompt.ids)]

    def make(
        self, batch: list[Example], keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> dict[str, dict[str, torch.Tensor]]:
        self.asked.append(len(batch))
        return {key: {'ids': self.factor * item.prompt.ids} for item, [key] in zip(batch, keys, strict=True)}


class Rows:
    """Prompts of one token; every third row cannot be used."""

    sizes = [9]

    def __getitem__(self, index: int) -> Example | Skipped:
        one = Piece(torch.tensor([index]), torch.zeros(1))
        return Skipped(str(index), 'bad') if index % 3 == 0 else Example(one, [])


@pytest.mark.parametrize('workers', [0, 2])
def test_several_makers_share_a_pass_and_make_only_what_is_missing(workers: int, tmp_path: Path) -> None:
    cfgs: Any = types.SimpleNamespace(
        train_cfgs=types.SimpleNamespace(seed=0, per_device_train_batch_size=2, sequence_parallel_size=1),
        data_cfgs=types.SimpleNamespace(num_workers=workers),
    )

    def work(rank: int) -> list[list[int]]:
        asked: list[list[int]] = []

        def once(*factors: int) -> list[Multiples]:
            stores = [TensorStore(tmp_path, 'multiples', factor, 'a_cfgs.folder') for factor in factors]
            makers = [Multiples(store, factor, []) for store, factor in zip(stores, factors, strict=True)]
            prepare.prepare(makers, Rows(), lambda examples, skipped: examples, cfgs, torch.device('cpu'))
            asked.append([sum(maker.asked) for maker in makers])
            return makers

        once(2)
        for maker in once(2, 3):
            for index in (1, 2, 4, 5, 7, 8):
                entry = maker.store.get(maker.store.key(torch.tensor([index])))
                assert entry is not None and entry.tensors['ids'].tolist() == [maker.factor * index]
            assert maker.store.key(torch.tensor([3])) not in maker.store
        once(3, 2)
        return asked

    found = run_ranks(work, 2)
    total = [[sum(pair) for pair in zip(*calls, strict=True)] for calls in zip(*found, strict=True)]
    assert total == [[6], [0, 6], [0, 0]]


def test_ranks_that_are_killed_go_on_where_they_stood(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows, cache = write_rows(tmp_path / 'rows.jsonl', pairs(12)), tmp_path / 'cache'
    settings = {'reference_cache_dir': cache, 'per_device_train_batch_size': 1}
    argv = sft(tmp_path / 'run', tiny('llama'), rows, template='Preference', **settings)

    def killed(rank: int) -> None:
        prepare.PACK_SECONDS = -1.0
        inner, calls = module.ReferenceScores.make, []

        def make(maker: Any, *given: Any) -> Any:
            calls.append(1)
            if rank == 1 and len(calls) == 4:
                die()
            return inner(maker, *given)

        module.ReferenceScores.make = make

    assert run(argv, 2, before=killed, algorithm=DPO)[1].code is None
    packs = {path: path.read_bytes() for path in cache.rglob('*.safetensors')}
    stored = sum(len(load(content)) for content in packs.values())
    assert stored == 3 * 2 * 2, 'both ranks wrote what they had made of three pairs'
    output = succeed(argv, ranks=2, algorithm=DPO)
    assert f'reference scores: {2 * 12 - stored} entries made' in output
    assert all(path.read_bytes() == content for path, content in packs.items())


def test_the_stage_has_a_bar_of_its_own_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = io.StringIO()
    bar = StageConsole('prepare latents', 4, Console(file=screen, force_terminal=True, width=100))
    bar.advance(4)
    bar.close()
    assert 'prepare latents' in screen.getvalue() and '4/4' in screen.getvalue()
    plain = StageConsole('prepare latents', 4, Console(file=screen))
    with caplog.at_level(logging.INFO):
        plain.advance(1)
        assert not caplog.text, 'not every batch makes a line'
        monkeypatch.setattr(console, 'LINE_SECONDS', -1.0)
        plain.advance(2)
    assert 'prepare latents 2/4 · eta ' in caplog.text
