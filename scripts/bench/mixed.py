"""Texts, images, audio and videos in one run on two ranks, batched by tokens: padding, waiting, and equal work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench import ours
from scripts.bench.measure import in_ranks, preload
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, mixed_sources, omni_model

RANKS = 2


def mixed(folder: Path, size: Size) -> list[Ratio]:
    """Floating point operations of the busier rank over the mean, step by step, the towers' own counted.

    The share of padding and of waiting for data are reported without a target: on a machine with as many cores as
    ranks, workers take turns with what they work for.
    """
    model = omni_model(folder / 'model', size)
    media = folder / 'media'
    media.mkdir()
    sources = mixed_sources(model, media, size)
    preload('align_anything.trainers.runs.offline')

    def argv(name: str, **more: Any) -> list[str]:
        return ours.settings(
            model,
            [str(source) for source in sources],
            folder / name,
            train_mixing='round_robin',
            max_length_per_batch=size.budget,
            max_steps=size.mixed_steps + 1,
            num_workers=1,
            **more,
        )

    layouts = {'packed': {'layout': 'packed'}, 'padded': {'layout': 'padded', 'group_by_length': True}}
    for name, how in layouts.items():
        (padding, waited, took), *_ = in_ranks(RANKS, _timed, argv(name, **how))
        grouped = ', grouped by length' if len(how) > 1 else ''
        say(f'  {name}{grouped}: padding {padding:.1%}, waited {waited / took:.1%} of {took:.1f} s')
    work = in_ranks(RANKS, _counted, argv('counted', **layouts['packed']))
    steps = list(zip(*work, strict=True))
    busiest, mean = sum(map(max, steps)), sum(map(sum, steps)) / RANKS
    say('  largest share of a step: ' + ' '.join(f'{max(step) / sum(step) * RANKS:.3f}' for step in steps))
    detail = f'{busiest / 1e9:.1f} against {mean / 1e9:.1f} GFLOP, {size.budget} tokens a rank, {len(steps)} steps'
    return [Ratio('mixed: work of the busier rank / mean', busiest / mean, 1.05, at_most=True, detail=detail)]


def _timed(argv: list[str]) -> tuple[float, float, float]:
    """Share of padding, seconds waited for data, seconds in all; without the first step, whose queue is empty."""
    from align_anything.reporting.metrics import METRICS_FILE, TIMINGS_FILE, read_metrics

    _, output = ours.train('any_to_text', argv)
    shares = [record['train/padding'] for record in read_metrics(output / METRICS_FILE)[1:]]
    timings = read_metrics(output / TIMINGS_FILE)[1:]
    took = [record['train/seconds_per_step'] for record in timings]
    waited = sum(record['train/data_wait'] * record['train/seconds_per_step'] for record in timings)
    return sum(shares) / len(shares), waited, sum(took)


def _counted(argv: list[str]) -> list[int]:
    floating: list[int] = []
    ours.train('any_to_text', argv, floating=floating)
    return floating
