"""`align-anything plan`: a run on paper, printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from rich.table import Table

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.flops import ACCELERATORS, Accelerator, accelerator_of
from align_anything.models.acting.known import is_acting
from align_anything.models.checkpoint import read_config
from align_anything.models.diffusion.checkpoint import configuration_folder, is_pipeline
from align_anything.models.diffusion.checkpoint import load_spec as load_pipeline_spec
from align_anything.models.pretrained_model import load_spec
from align_anything.trainers.runs.planning.denoisers import sizing_of
from align_anything.trainers.runs.planning.search import Choice, Plan, plan_denoiser, plan_tokens, told, would_fit
from align_anything.trainers.runs.planning.subject import GIB, Asked
from align_anything.trainers.runs.planning.tokens import Architecture, media_of


def device_named(name: str) -> Accelerator:
    """Returns what is known of a device. Raises SettingsError for one that is not known."""
    found = accelerator_of(name)
    if found is None:
        raise SettingsError([f"--device: '{name}' is not known. Known are {', '.join(ACCELERATORS)}."])
    return found


def planner_of(model: str, pair: str, algorithm: str, asked: Asked) -> Callable[[Asked], Plan]:
    """Returns what plans a run; reads the configurations of `model`, with media its processor, and nothing else of it.

    Raises SettingsError for a run that there is not, and ModelError for a model that cannot be planned with.
    """
    find_run(pair, algorithm)
    learned = known_algorithms()[algorithm]()
    if is_pipeline(model):
        spec = load_pipeline_spec(configuration_folder(model), sizing_of(asked))
        return partial(plan_denoiser, spec, learned)
    if is_acting(model):
        raise ModelError(
            f'{model} acts without tokens, and a plan counts what a language model computes of them: `--dry_run` '
            'counts its memory, and a run its speed.'
        )
    if asked.images or asked.frames or asked.seconds:
        family = load_spec(model, model_max_length=None)
        return partial(plan_tokens, family, learned, media=media_of(family, asked))
    return partial(plan_tokens, Architecture.of(read_config(model)), learned)


def shown(planner: Callable[[Asked], Plan], asked: Asked) -> Iterator[object]:
    """Yields what is printed: a table of what was tried, and what to take, or what would fit."""
    found = planner(asked)
    table = Table(
        'DeepSpeed file', 'weights', 'gradients', 'optimizer', 'activations', 'of a device', 'rows at once', 'seconds',
        'settings', title=f'One device of {asked.gpus}, GiB; the updates of a step of {asked.rows} prompts',
    )  # fmt: skip
    for choice in found.choices:
        words = ', '.join(f'{name} {value}' for name, value in choice.settings.given.items()) if choice.fits else ''
        table.add_row(choice.file, *_memory(choice), *_speed(choice), words)
    yield table
    tera = found.flops.model / 1e12
    yield (
        f'{found.weights / 1e9:.3g} billion weights, of which {found.trained / 1e9:.3g} train; {found.units:,} '
        f'{found.unit} a step, {tera:,.1f} TFLOP for the model ({tera / found.units * 1e3:.3g} GFLOP a '
        f'{found.unit.removesuffix("s")}) and {found.flops.again / 1e12:,.1f} again.'
    )
    if found.best is None:
        changes = list(would_fit(planner, asked))
        yield 'Nothing fits.' + (' What would, one or the other:' if changes else ' Take a smaller model.')
        yield from changes
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
    yield f'Take {told(best)}'
    ranks = best.settings.sequence_parallel
    if ranks > 1:
        yield (
            f'{ranks} devices share a row and hold 1/{ranks} of its activations; in exchange a step has 1/{ranks} of '
            f'the rows at once, and {best.waiting:.3g} seconds of it go to what they send each other and to host memory'
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
        f'A step: about {found.seconds:.3g} seconds, {_number(found.units / found.seconds)} {found.unit} a second, at '
        f'{asked.efficiency:.0%} of {asked.accelerator.tflops:g} TFLOP/s a device (docs/planning.md)'
    )


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
