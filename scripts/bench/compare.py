"""Training speed: our layouts and the peer, on the same model, rows and batches, one after the other, several times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_anything.trainers.base.metrics import METRICS_FILE, read_metrics
from scripts.bench import ours, peer
from scripts.bench.measure import StepClock, best_per_step, in_child, preload
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, image_model, image_rows, text_model, text_rows, write_rows

TOWER = ('model.vision_tower',)


def text(folder: Path, size: Size) -> list[Ratio]:
    """Qwen2-type text SFT."""
    model = text_model(folder / 'text_model', size)
    rows = text_rows(model, size, size.batch * (size.steps + 1))
    return _compare('text_to_text', folder, size, model, rows, size.batch, {'packed_padded': 1.7, 'peer': 1.8}, {})


def image(folder: Path, size: Size) -> list[Ratio]:
    """LLaVA-type image SFT with a frozen CLIP tower; decoding and processing of the pictures is counted."""
    model = image_model(folder / 'image_model', size)
    photos = folder / 'photos'
    photos.mkdir()
    rows = image_rows(model, photos, size, size.image_batch * (size.steps + 1))
    more = {'freeze_vision_tower': True}
    return _compare('text_image_to_text', folder, size, model, rows, size.image_batch, {'peer': 1.6}, more)


def _compare(
    pair: str,
    folder: Path,
    size: Size,
    model: Path,
    rows: list[dict[str, Any]],
    batch: int,
    targets: dict[str, float],
    more: dict[str, Any],
) -> list[Ratio]:
    preload('trl', 'align_anything.trainers.base.run')
    data = write_rows(folder / f'{pair}.jsonl', rows)
    steps = size.steps + 1

    def argv(layout: str) -> list[str]:
        return ours.settings(
            model,
            data,
            folder / f'{pair}_{layout}',
            per_device_train_batch_size=batch,
            max_steps=steps,
            layout=layout,
            **more,
        )

    ordered = [rows[index] for index in in_child(ours.order, pair, argv('packed'))]
    sides: dict[str, Callable[[], tuple[StepClock, float | None]]] = {
        'packed': lambda: in_child(_ours, pair, argv('packed')),
        'padded': lambda: in_child(_ours, pair, argv('padded')),
        'trl': lambda: in_child(_peer, model, ordered, batch, steps, TOWER if more else ()),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(size.rounds):
        for name, run in sides.items():
            clock, padding = run()
            times[name].append(clock.seconds)
            listed = ' '.join(f'{value:.2f}' for value in clock.seconds)
            waste = '' if padding is None else f', padding {padding:.0%}'
            say(f'  round {number + 1} {name}: {listed} CPU s a step, first loss {clock.losses[0]:.4f}{waste}')
    best = {name: best_per_step(rounds) for name, rounds in times.items()}
    samples = batch * size.steps
    rates = {name: samples / seconds for name, seconds in best.items()}
    found = []
    for key, limit in targets.items():
        other = 'padded' if key == 'packed_padded' else 'trl'
        detail = f'{rates["packed"]:.2f} against {rates[other]:.2f} samples per CPU second'
        found.append(Ratio(f'{pair}: packed / {other}', rates['packed'] / rates[other], limit, detail=detail))
    return found


def _ours(pair: str, argv: list[str]) -> tuple[StepClock, float]:
    clock, output = ours.train(pair, argv)
    shares = [record['train/padding'] for record in read_metrics(output / METRICS_FILE)[1:]]
    return clock, sum(shares) / len(shares)


def _peer(*args: Any) -> tuple[StepClock, None]:
    return peer.train(*args), None
