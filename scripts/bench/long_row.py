"""One long row on one rank and shared by two: seconds on the wall and memory of activations in each step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from scripts.bench import ours
from scripts.bench.measure import in_ranks, preload
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, Texts, text_model, words, write_rows

RANKS = 2
HEADS = 4
LIMIT = 0.6


def long_row(folder: Path, size: Size) -> list[Ratio]:
    """The same steps, of one row each, by one rank and by `RANKS` that share it, one thread a rank.

    A step takes as long as the slower rank, and as much memory as the rank that takes more.
    """
    shape = replace(size, hidden=size.row_hidden, layers=size.row_layers)
    model = text_model(folder / 'model', shape, heads=HEADS)
    _lengthen(model, size.row)
    texts = Texts(model, words(size.words), seed=12)
    data = write_rows(folder / 'rows.jsonl', [texts.row(size.row) for _ in range(size.row_steps + 1)])
    preload('align_anything.trainers.runs.offline')
    found: dict[int, list[list[ours.Cost]]] = {1: [], RANKS: []}
    for number in range(size.rounds):
        for ranks, rounds in found.items():
            argv = ours.settings(
                model,
                data,
                folder / f'run_{ranks}_{number}',
                model_max_length=size.row,
                per_device_train_batch_size=1,
                max_steps=size.row_steps + 1,
                layout='packed',
                sequence_parallel_size=ranks,
            )
            # The first step pays for allocation, and makes the optimizer's states.
            steps = [_together(step) for step in zip(*in_ranks(ranks, _costs, argv), strict=True)][1:]
            rounds.append(steps)
            told = ', '.join(f'{cost.wall:.2f} s ({cost.cpu:.2f} s of a core)' for cost in steps)
            say(f'  round {number + 1}, {ranks} rank{"s" * (ranks > 1)}: {told}, {steps[-1].memory / 2**20:.0f} MiB')
    one, shared = ([min(cost.wall for cost in step) for step in zip(*rounds, strict=True)] for rounds in found.values())
    least = [max(cost.memory for steps in rounds for cost in steps) / 2**20 for rounds in found.values()]
    what = f'long row of {size.row} tokens: {RANKS} ranks / one'
    seconds = f'{sum(shared) / len(shared):.2f} and {sum(one) / len(one):.2f} seconds a step'
    memory = f'{least[1]:.0f} and {least[0]:.0f} MiB above weights and states'
    return [
        Ratio(f'{what}, wall time', sum(shared) / sum(one), LIMIT, at_most=True, detail=seconds),
        Ratio(f'{what}, memory', least[1] / least[0], LIMIT, at_most=True, detail=memory),
    ]


def _lengthen(model: Path, positions: int) -> None:
    """Lets a checkpoint take rows of so many tokens."""
    file = model / 'config.json'
    config = {**json.loads(file.read_text(encoding='utf-8')), 'max_position_embeddings': positions}
    file.write_text(json.dumps(config), encoding='utf-8')


def _together(costs: tuple[ours.Cost, ...]) -> ours.Cost:
    return ours.Cost(*map(max, zip(*costs, strict=True)))


def _costs(argv: list[str]) -> list[ours.Cost]:
    return ours.costs('text_to_text', argv)
