"""`align-anything plan`: a run on paper, printed."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.flops import ACCELERATORS, Accelerator, accelerator_of
from align_anything.models.acting.known import is_acting
from align_anything.models.checkpoint import read_config
from align_anything.models.diffusion.checkpoint import is_pipeline
from align_anything.trainers.runs.planning import Asked, Choice, Plan, plan

GIB = 2**30


def device_named(name: str) -> Accelerator:
    """Returns what is known of a device. Raises SettingsError for one that is not known."""
    found = accelerator_of(name)
    if found is None:
        raise SettingsError([f"--device: '{name}' is not known. Known are {', '.join(ACCELERATORS)}."])
    return found


def planned(model: str, pair: str, algorithm: str, asked: Asked) -> Plan:
    """Plans a run; reads the configuration of `model` and nothing else of it.

    Raises SettingsError for a run that there is not, and ModelError for a model that cannot be planned with.
    """
    find_run(pair, algorithm)
    if is_pipeline(model):
        raise ModelError(
            f'{model} is a pipeline of diffusers, whose operations only its first step tells: `--dry_run` counts its '
            'memory, and a run its speed.'
        )
    if is_acting(model):
        raise ModelError(
            f'{model} acts without tokens, and a plan counts what a language model computes of them: `--dry_run` '
            'counts its memory, and a run its speed.'
        )
    return plan(read_config(model), known_algorithms()[algorithm](), asked)


def shown(found: Plan, asked: Asked) -> Iterator[object]:
    """Yields what is printed: a table of what was tried, and what to take."""
    table = Table(
        'DeepSpeed file', 'weights', 'gradients', 'optimizer', 'activations', 'of a device', 'rows at once', 'seconds',
        title=f'One device of {asked.gpus}, GiB; the updates of a step of {asked.rows} prompts',
    )  # fmt: skip
    for choice in found.choices:
        table.add_row(choice.file, *_memory(choice), *_speed(choice))
    yield table
    tera = found.flops.model / 1e12
    yield (
        f'{found.weights / 1e9:.3g} billion weights, of which {found.trained / 1e9:.3g} train; {found.tokens:,} tokens '
        f'a step, {tera:,.1f} TFLOP for the model ({tera / found.tokens * 1e3:.3g} GFLOP a token) and '
        f'{found.flops.again / 1e12:,.1f} again.'
    )
    if found.best is None:
        yield (
            'Nothing fits: take adapters (--lora), more devices, or shorter rows. What is missing is the memory of the '
            'table beside --gpu-memory.'
        )
        return
    yield from _advice(found, found.best, asked)


def _memory(choice: Choice) -> list[str]:
    models = choice.memory.values()
    held = [(own.weights, own.gradients, own.optimizer) for own in models]
    sums = [sum(sizes) for sizes in zip(*held, strict=True)]
    kept = sum(own.activations or 0.0 for own in models)
    activations = f'{kept / GIB:.1f}' if choice.fits else 'do not fit'
    return [*(f'{size / GIB:.1f}' for size in sums), activations, f'{(sum(sums) + kept) / GIB:.1f}']


def _speed(choice: Choice) -> list[str]:
    if not choice.fits:
        return ['', '']
    bound = ' (sending)' if choice.communicating > choice.computing else ''
    return [str(choice.rows), f'{choice.seconds:.3g}{bound}']


def _advice(found: Plan, best: Choice, asked: Asked) -> Iterator[str]:
    yield (
        f'Take --ds_cfgs {best.file} --per_device_train_batch_size {best.rows} '
        f'--gradient_accumulation_steps {best.micro_batches}'
    )
    if found.rollouts is not None:
        own = found.rollouts
        yield (
            f'Generation: {own.shared:.3g} seconds on all devices, {own.parallel} to a copy of the model, up to '
            f'{own.together} responses of a copy at once'
        )
        if own.apart is not None:
            yield (
                f'Apart, {own.apart[0]} devices that generate and {asked.gpus - own.apart[0]} that update take '
                f'{own.apart[1]:.3g} seconds a step (vllm_cfgs.vllm_async)'
            )
    yield (
        f'A step: about {found.seconds:.3g} seconds, {found.tokens / found.seconds:,.0f} tokens a second, at '
        f'{asked.efficiency:.0%} of {asked.accelerator.tflops:g} TFLOP/s a device (docs/planning.md)'
    )
