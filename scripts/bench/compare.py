"""Training speed: our layouts and the peer, on the same model, rows and batches, one after the other, several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align_anything.reporting.metrics import METRICS_FILE, read_metrics
from scripts.bench import ours, peer
from scripts.bench.measure import StepClock, best_per_step, in_child, peak, preload, reset_peak, resident
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, image_model, image_rows, text_model, text_rows, write_rows

FROZEN_TOWER = {'freeze_vision_tower': True}
TOWER = ('model.vision_tower',)
Found = tuple[StepClock, int, float | None]
"""Of one run: its clock, bytes at the peak above what it began with, and the share of padding where it is known."""
SAME_LOSS, SAME_NORM = 1e-4, 1e-4
"""How far the first losses of the sides may be apart, and by what share the norms of their gradients."""


@dataclass(frozen=True)
class Task:
    """What all sides train: an algorithm's file name, the modality pair, a checkpoint, and rows in batches.

    `settings` are those of our own runs beside the layout.
    """

    algorithm: str
    pair: str
    model: Path
    rows: list[dict[str, Any]]
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """What was found of one side: samples per CPU second, and bytes at the peak above what the process began with."""

    rate: float
    memory: int


def text(folder: Path, size: Size) -> list[Ratio]:
    """Qwen2-type text SFT."""
    model = text_model(folder / 'text_model', size)
    rows = text_rows(model, size, size.batch * (size.steps + 1))
    task = Task('sft', 'text_to_text', model, rows, size.batch)
    sides = measure(folder, size, task, {name: {'layout': name} for name in ('packed', 'padded')})
    return [speed('text_to_text', sides, 'packed', 'padded', 1.7), speed('text_to_text', sides, 'packed', 'trl', 1.8)]


def image(folder: Path, size: Size) -> list[Ratio]:
    """LLaVA-type image SFT with a frozen CLIP tower; decoding and processing of the images is counted."""
    model = image_model(folder / 'image_model', size)
    rows = image_rows(model, folder / 'photos', size, size.image_batch * (size.steps + 1))
    task = Task('sft', 'text_image_to_text', model, rows, size.image_batch, FROZEN_TOWER)
    sides = measure(folder, size, task, {'packed': {'layout': 'packed'}})
    return [speed('text_image_to_text', sides, 'packed', 'trl', 1.6)]


def measure(
    folder: Path, size: Size, task: Task, runs: Mapping[str, Mapping[str, Any]], against_peer: bool = True
) -> dict[str, Side]:
    """Runs each of our `runs` (settings by name) and the peer, `trl`, in turn.

    Raises RuntimeError when they don't begin with the same loss and the same gradient.
    """
    preload('deepspeed', 'align_anything.trainers.runs.offline', *(peer.MODULES if against_peer else ()))
    data = write_rows(folder / 'rows.jsonl', task.rows)
    steps = size.steps + 1

    def argv(name: str) -> list[str]:
        return ours.settings(
            task.model,
            data,
            folder / name,
            per_device_train_batch_size=task.batch,
            max_steps=steps,
            **{**task.settings, **runs[name]},
        )

    sides: dict[str, Callable[[], Found]] = {
        name: lambda name=name: in_child(measured, task.pair, argv(name), task.algorithm) for name in runs
    }
    if against_peer:
        ordered = [
            task.rows[index] for index in in_child(ours.order, task.pair, argv(next(iter(runs))), task.algorithm)
        ]
        frozen = TOWER if task.settings.get('freeze_vision_tower') else ()
        sides['trl'] = lambda: in_child(_peer, task.algorithm, task.model, ordered, task.batch, steps, frozen)
    return in_turn(sides, size.rounds, task.batch * size.steps)


def in_turn(
    sides: Mapping[str, Callable[[], Found]], times: int, samples: int, *, same_gradient: bool = True
) -> dict[str, Side]:
    """Runs all `sides` one after the other, so many `times`; each trains on `samples` after its first step.

    Raises RuntimeError when they don't begin with the same loss and, unless they train on other parts of the samples,
    the same gradient.
    """
    found: dict[str, list[tuple[StepClock, int]]] = {name: [] for name in sides}
    for number in range(times):
        for name, run in sides.items():
            clock, memory, padding = run()
            found[name].append((clock, memory))
            listed = ' '.join(f'{value:.2f}' for value in clock.seconds)
            waste = '' if padding is None else f', padding {padding:.0%}'
            say(
                f'  round {number + 1} {name}: {listed} CPU s a step, {memory / 2**20:.0f} MiB, '
                f'first loss {clock.losses[0]:.4f}, gradient {clock.norms[0]:.4f}{waste}'
            )
    require_same_work({name: rounds[0][0] for name, rounds in found.items()}, same_gradient=same_gradient)
    return {
        name: Side(samples / best_per_step([clock.seconds for clock, _ in rounds]), min(memory for _, memory in rounds))
        for name, rounds in found.items()
    }


def speed(what: str, sides: Mapping[str, Side], name: str, other: str, limit: float) -> Ratio:
    """How many times as many samples one side does as the other."""
    rate, against = sides[name].rate, sides[other].rate
    detail = f'{rate:.2f} against {against:.2f} samples per CPU second'
    return Ratio(f'{what}: {name} / {other}', rate / against, limit, detail=detail)


def require_same_work(clocks: Mapping[str, StepClock], *, same_gradient: bool = True) -> None:
    """Raises RuntimeError when first losses, or the norms of the first gradients where they matter, are apart.

    The gradient tells what a preference loss does not: it begins at log 2 whatever the responses are.
    """
    losses, norms = ([getattr(clock, key)[0] for clock in clocks.values()] for key in ('losses', 'norms'))
    apart = same_gradient and max(norms) > min(norms) * (1 + SAME_NORM)
    if max(losses) - min(losses) > SAME_LOSS or apart:
        told = ', '.join(
            f'{name} {loss:.5f} and {norm:.5f}' for name, loss, norm in zip(clocks, losses, norms, strict=True)
        )
        raise RuntimeError(f'the sides do not do the same work; first losses and gradient norms: {told}')


def measured(*args: Any) -> Found:
    """The clock of a run of ours, its memory, and its share of padding if any; arguments as of `ours.train`."""
    reset_peak()
    before = resident()
    clock, output = ours.train(*args)
    records = read_metrics(output / METRICS_FILE)[1:]
    shares = [record['train/padding'] for record in records if 'train/padding' in record]
    return clock, peak() - before, sum(shares) / len(shares) if shares else None


def _peer(*args: Any) -> tuple[StepClock, int, None]:
    reset_peak()
    before = resident()
    clock = peer.train(*args)
    return clock, peak() - before, None
