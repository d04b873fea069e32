"""One measured run of align-anything: the real loop on the real wiring, with a clock where the console stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.measure import StepClock, cpu_seconds, free_at_once, peak, reset_peak, resident

SETTINGS = {
    'ds_cfgs': 'ds_z0_config.json',
    'bf16': False,
    'gradient_checkpointing': False,
    'gradient_accumulation_steps': 1,
    'optimizer': 'adamw_torch',
    'learning_rate': 1e-4,
    'lr_scheduler_type': 'constant',
    'lr_warmup_ratio': 0.0,
    'eval_strategy': 'no',
    'save_total_limit': 0,
    'log_type': 'none',
    'train_template': 'Messages',
}


def settings(model: Path, data: Path, output: Path, **more: Any) -> list[str]:
    """The command line of a run, on chats unless `more` names another template."""
    values = {**SETTINGS, 'model_name_or_path': model, 'train_datasets': data, 'output_dir': output, **more}
    return [word for key, value in values.items() for word in (f'--{key}', str(value))]


def train(
    pair_name: str, argv: list[str], algorithm: str = 'sft', floating: list[int] | None = None
) -> tuple[StepClock, Path]:
    """Trains and returns the clock, and the folder with the metrics of the run.

    `floating` is filled with the floating point operations of this rank's matrix products and attention in each step.
    Counting them takes time.
    """
    from align_anything.reporting.console import TrainingConsole
    from align_anything.reporting.metrics import METRICS_FILE, read_metrics

    class Clocked(TrainingConsole):
        """A console that shows nothing and looks at the clock after each step."""

        def advance(self, step: int) -> None:
            clock.mark()

        def report(self, step: int, values: Mapping[str, float]) -> None:
            """Shows nothing."""

    clock = StepClock()
    loop, output = _loop(pair_name, argv, algorithm, Clocked)
    if floating is not None:
        _count(loop, floating)
    with closing(loop):
        loop.run()
    records = read_metrics(output / METRICS_FILE)
    clock.losses = [record['train/loss'] for record in records]
    clock.norms = [record['train/grad_norm'] for record in records]
    return clock, output


class Cost(NamedTuple):
    """Of one optimizer step: seconds on the wall, CPU seconds, and bytes at the peak above what there was before."""

    wall: float
    cpu: float
    memory: int


def costs(pair_name: str, argv: list[str]) -> list[Cost]:
    """What each optimizer step of a run costs this rank, from a batch that lies ready to the new weights."""
    from align_anything.reporting.console import TrainingConsole

    class Silent(TrainingConsole):
        """A console that shows nothing."""

        def advance(self, step: int) -> None:
            """Shows nothing."""

        def report(self, step: int, values: Mapping[str, float]) -> None:
            """Shows nothing."""

    free_at_once()
    loop, _ = _loop(pair_name, argv, 'sft', Silent)
    step, found = loop.engine.train_step, []

    def measured(*args: Any) -> Any:
        before = resident()
        reset_peak()
        began, computed = time.perf_counter(), cpu_seconds()
        result = step(*args)
        found.append(Cost(time.perf_counter() - began, cpu_seconds() - computed, peak() - before))
        return result

    loop.engine.train_step = measured
    with closing(loop):
        loop.run()
    return found


def _count(loop: Any, floating: list[int]) -> None:
    from align_anything.core.counting import Counting

    step = loop.engine.train_step

    def counted(*args: Any) -> Any:
        with Counting() as counting:
            result = step(*args)
        floating.append(int(counting.products + counting.attention))
        return result

    loop.engine.train_step = counted


def order(pair_name: str, argv: list[str], algorithm: str = 'sft') -> list[int]:
    """The rows of the first epoch in the order in which the run trains on them."""
    return [row for batch in _planned(pair_name, argv, algorithm)[3] for row in batch]


def draws(pair_name: str, argv: list[str], algorithm: str, steps: int) -> list[tuple[Any, Any]]:
    """The noise levels `(rows,)` and the noise `(rows, …)` of each of the first steps, one for the answers of a row."""
    _, dataset, collate, batches = _planned(pair_name, argv, algorithm)
    found = []
    for rows in batches[:steps]:
        # Before anything was encoded latents are zero, so that what flows and ε-models predict is the noise.
        inputs = collate([dataset[row] for row in rows]).inputs
        own = slice(None, None, len(inputs.sample) // len(rows))
        # As arrays: the memory of tensors would go with the process that measures this.
        found.append((inputs.level[own].numpy(), inputs.target[own].numpy()))
    return found


def preparation(pair_name: str, argv: list[str], algorithm: str) -> tuple[float, int]:
    """CPU seconds in which the encoders prepare all rows, and the memory that it took.

    Loading the encoders is left out, and their first pass, which pays for allocation as the first step of a loop does.
    """
    import torch

    from align_anything.engines.process_group import join_process_group
    from align_anything.trainers.runs.prepared import prepare_latents

    reset_peak()
    before = resident()
    cfgs, dataset, collate, _ = _planned(pair_name, argv, algorithm)
    join_process_group()
    spec, opening = collate.spec, []
    open_pipeline = spec.open

    def opened(*args: Any) -> Any:
        began = cpu_seconds()
        pipeline = open_pipeline(*args)
        spec.encode_media(pipeline, torch.zeros(1, 3, *spec.default_size()))
        spec.encode_text(pipeline, ['', ''])
        opening.append(cpu_seconds() - began)
        return pipeline

    spec.open = opened
    began = cpu_seconds()
    prepare_latents(cfgs, spec, [dataset])
    return cpu_seconds() - began - sum(opening), peak() - before


def _planned(pair_name: str, argv: list[str], algorithm: str) -> tuple[Any, Any, Any, list[list[int]]]:
    """The settings of a run, its rows, its collator, and the rows of each micro-batch of the first epoch."""
    from align_anything.trainers.runs.assembly import make_collator
    from align_anything.trainers.runs.data import make_dataset, open_sources, training_sampler
    from align_anything.trainers.runs.settings import spec_of

    pair, resolved = resolved_run(pair_name, argv, algorithm)
    cfgs, sources = resolved.cfgs, open_sources(resolved.cfgs)
    spec = spec_of(cfgs)
    dataset = make_dataset(sources.training, pair, spec, resolved.algorithm, cfgs.data_cfgs.train_on)
    collate = make_collator(cfgs, spec, pair, resolved.algorithm)
    sampler = training_sampler(sources.training, dataset, collate, cfgs)
    return cfgs, dataset, collate, list(sampler.micro_batches(0))


def resolved_run(pair_name: str, argv: list[str], algorithm: str) -> tuple[Any, Any]:
    """The pair of a run, and its settings with its algorithm."""
    from align_anything.cli.leaves import find_run
    from align_anything.trainers.launch import settings_of

    pair, kind = find_run(pair_name, algorithm)
    return pair, settings_of(pair, kind, argv, {})


def _loop(pair_name: str, argv: list[str], algorithm: str, console: type) -> tuple[Any, Path]:
    import torch

    from align_anything.datasets.skips import SkipReport
    from align_anything.engines.by_kind import ByKind
    from align_anything.engines.process_group import join_process_group
    from align_anything.reporting.callbacks import Watchers
    from align_anything.reporting.metrics import MetricsWriter
    from align_anything.trainers.loops.offline import OfflineLoop
    from align_anything.trainers.loops.progress import Progress
    from align_anything.trainers.runs.assembly import assemble, make_collator
    from align_anything.trainers.runs.begin import StopSignal, make_folders
    from align_anything.trainers.runs.data import (
        make_dataset,
        open_sources,
        row_costs,
        training_loader,
        training_sampler,
    )
    from align_anything.trainers.runs.media_codes import prepare_codes
    from align_anything.trainers.runs.prepared import prepare_latents
    from align_anything.trainers.runs.reference import make_roles
    from align_anything.trainers.runs.settings import spec_of

    pair, resolved = resolved_run(pair_name, argv, algorithm)
    cfgs, objective = resolved.cfgs, resolved.algorithm
    output = make_folders(cfgs, objective)
    join_process_group()
    torch.manual_seed(cfgs.train_cfgs.seed)
    sources, spec = open_sources(cfgs), spec_of(cfgs)
    dataset = make_dataset(sources.training, pair, spec, objective, cfgs.data_cfgs.train_on)
    dataset.known = prepare_codes(cfgs, spec, [dataset]) or prepare_latents(cfgs, spec, [dataset])
    steps = cfgs.train_cfgs.max_steps
    collate = make_collator(cfgs, spec, pair, objective)
    costs, _ = row_costs(dataset, collate, cfgs)
    sampler = training_sampler(sources.training, dataset, collate, cfgs, costs)
    engine = assemble(cfgs, objective, collate, steps)
    found = engine.policy.collate
    if found.layout != collate.layout:
        raise RuntimeError(f'the run fell back to the {found.layout} layout; nothing to measure')
    roles, rows, _ = make_roles(cfgs, objective, engine, dataset, [])
    loop = OfflineLoop(
        cfgs=cfgs,
        algorithm=objective,
        engine=engine,
        roles=roles,
        objective=ByKind(objective),
        training=training_loader(rows, sampler, found, cfgs),
        evaluation={},
        rows=len(dataset),
        steps=steps,
        progress=Progress(),
        writer=MetricsWriter(output, 'none', 'bench', 'bench', settings={}, resume_step=None),
        console=console(steps),
        skips=SkipReport(output, keep=0),
        save=lambda progress, *, with_state: None,
        stop_asked=StopSignal(),
        watchers=Watchers(),
        ema=None,
        previews=None,
    )
    return loop, output
