"""Which ZeRO stage, settings, micro-batch and rollout split fit some devices, and how long a step would take.

From configurations alone; no weights are read, and nothing is measured. What is assumed stands in docs/planning.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.core.errors import SettingsError
from align_anything.core.flops import Flops
from align_anything.engines.deepspeed_config import offloads_optimizer, partitions_weights, zero_stage
from align_anything.engines.optim import EIGHT_BITS
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.family import FamilySpec
from align_anything.models.trainable import count
from align_anything.models.work import work_of_model
from align_anything.trainers.runs.checkpoints import EMA, OLD
from align_anything.trainers.runs.memory import Memory, average_memory, estimate_memory
from align_anything.trainers.runs.planning.denoisers import denoised_rollouts, denoiser_subject
from align_anything.trainers.runs.planning.rollouts import Rollouts, token_rollouts
from align_anything.trainers.runs.planning.subject import GIB, HALF, Asked, Settings, Subject
from align_anything.trainers.runs.planning.tokens import Architecture, Media, token_subject
from align_anything.trainers.runs.verdict import SHARE, TILES

FILES = ('ds_z0_config.json', 'ds_z2_config.json', 'ds_z3_config.json', 'ds_z3_offload_config.json')
"""DeepSpeed files that are tried, in the order of what they cost."""
PER_MACHINE = 8
HOST = 25e9
"""Bytes a second between a device and the memory of its machine, which what is offloaded takes."""
MOST_TIMES = 64
"""How many times more devices, or shorter responses, are looked at where nothing fits."""


@dataclass(frozen=True)
class Choice:
    """How one DeepSpeed file would do.

    Attributes:
        file: its name.
        memory: of one device, by model.
        rows: of a micro-batch, responses where they are generated; 0 where not even one fits.
        settings: what goes with it, the quickest that fit; where nothing fits, all that takes less memory.
        micro_batches: of a device in a step.
        computing, communicating: seconds of the updates of a step, of which the longer decides.
        waiting: seconds beside, for what comes from host memory and from ranks that share a row.
    """

    file: str
    memory: dict[str, Memory]
    rows: int
    settings: Settings = Settings()
    micro_batches: int = 0
    computing: float = 0.0
    communicating: float = 0.0
    waiting: float = 0.0

    @property
    def fits(self) -> bool:
        return self.rows > 0

    @property
    def seconds(self) -> float:
        return max(self.computing, self.communicating) + self.waiting


@dataclass(frozen=True)
class Plan:
    """What was found, see `Choice` and `Rollouts`.

    Attributes:
        weights, trained: how many numbers there are, and how many of them train.
        flops: operations of a step over all devices, as the best choice computes them.
        units: of a step, media included; of what, `unit` says.
    """

    weights: int
    trained: int
    flops: Flops
    units: int
    unit: str
    choices: list[Choice]
    rollouts: Rollouts | None = None

    @property
    def best(self) -> Choice | None:
        """The quickest one that fits."""
        return quickest(self.choices)

    @property
    def seconds(self) -> float | None:
        """Of a step, with generation; None where nothing fits."""
        if self.best is None:
            return None
        if self.rollouts is None:
            return self.best.seconds
        shared = self.rollouts.shared + self.best.seconds
        return shared if self.rollouts.apart is None else min(shared, self.rollouts.apart[1])


def quickest(choices: list[Choice]) -> Choice | None:
    """Returns the quickest that fits, the first of equally quick ones; None where none does."""
    return min((choice for choice in choices if choice.fits), key=lambda choice: choice.seconds, default=None)


def plan_tokens(
    spec: Architecture | FamilySpec, algorithm: Algorithm, asked: Asked, media: Media | None = None
) -> Plan:
    """Plans training `algorithm` on a model that reads and writes tokens; `media` are those of a prompt.

    Raises ModelError for a configuration that no class here trains, and SettingsError for an algorithm that trains
    nothing, and for an average, which only denoisers have.
    """
    if asked.ema:
        raise SettingsError(['--ema: runs of denoisers alone keep an average of their weights.'])
    _require_training(algorithm)
    media = media or Media()
    subject = token_subject(spec, algorithm, asked, media)
    choices = list(choices_of(subject, algorithm, asked))
    best, rollouts = quickest(choices), None
    if algorithm.generates:
        frozen = work_of_model(subject.plain, spec, recomputes=0.0)
        prompt, seconds = asked.prompt + media.tokens, None if best is None else best.seconds
        rollouts = token_rollouts(spec.config, frozen, _size(subject.plain), prompt, asked, seconds)
    return _planned(subject, asked, choices, rollouts)


def plan_denoiser(spec: DiffusionSpec, algorithm: Algorithm, asked: Asked) -> Plan:
    """Plans training `algorithm` on the denoiser of a pipeline.

    Raises SettingsError for what denoisers do not have, and for an algorithm that trains nothing, and ModelError for a
    pipeline whose shapes hang on numbers.
    """
    _require_training(algorithm)
    subject = denoiser_subject(spec, algorithm, asked)
    choices = list(choices_of(subject, algorithm, asked))
    rollouts = None
    if algorithm.generates:
        rollouts = denoised_rollouts(spec, subject.forward, asked)
    return _planned(subject, asked, choices, rollouts)


def would_fit(planner: Callable[[Asked], Plan], asked: Asked) -> Iterator[str]:
    """Yields what could be changed where nothing fits, each by itself, in words, with the settings that then fit.

    `planner` plans what is asked.
    """
    adapters = [('--lora', replace(asked, use_lora=True))] if not asked.use_lora else []
    quantised = [('--qlora', replace(asked, use_lora=True, use_bnb=True))] if not asked.use_bnb else []
    times = [2**power for power in range(1, MOST_TIMES.bit_length())]
    more = [(f'--gpus {asked.gpus * number}', replace(asked, gpus=asked.gpus * number)) for number in times]
    lengths = [asked.response // number for number in times if asked.response >= number]
    shorter = [(f'--response {length}', replace(asked, response=length)) for length in lengths]
    for changes in ([*adapters, *quantised], more, shorter):
        for words, changed in changes:
            try:
                best = planner(changed).best
            except SettingsError:
                continue
            if best is not None:
                yield f'{words}: {told(best)}'
                break


def told(choice: Choice) -> str:
    """Returns a choice as settings of a run."""
    given = {
        'ds_cfgs': choice.file,
        'per_device_train_batch_size': choice.rows,
        'gradient_accumulation_steps': choice.micro_batches,
        **choice.settings.given,
    }
    return ' '.join(f'--{name} {value}' for name, value in given.items())


def _require_training(algorithm: Algorithm) -> None:
    if not algorithm.trains:
        raise SettingsError([f'--algorithm: {algorithm.name} trains nothing, so there is nothing to plan.'])


def _planned(subject: Subject, asked: Asked, choices: list[Choice], rollouts: Rollouts | None) -> Plan:
    best = quickest(choices)
    one = subject.passes(Settings() if best is None else best.settings)
    total = Flops(*(asked.rows * value for value in (one.forward, one.backward, one.again)))
    trained = sum(count(parameter) for parameter in subject.model.parameters() if parameter.requires_grad)
    return Plan(_size(subject.plain), trained, total, subject.units * asked.rows, subject.unit, choices, rollouts)


def _size(model: nn.Module) -> int:
    return sum(count(parameter) for parameter in model.parameters())


def choices_of(subject: Subject, algorithm: Algorithm, asked: Asked) -> Iterator[Choice]:
    """Yields how each DeepSpeed file would do."""
    for file in FILES:
        config, tried = load_deepspeed_config(file), []
        for settings in _ladder(subject, asked, config):
            tried = [_choice(file, config, own, subject, algorithm, asked) for own in settings]
            if (found := quickest(tried)) is not None:
                yield found
                break
        else:
            yield min(tried, key=lambda choice: sum(own.total for own in choice.memory.values()))


def _ladder(subject: Subject, asked: Asked, config: dict[str, Any]) -> Iterator[list[Settings]]:
    """Yields the settings that are tried, and where none of them fits, those with what costs more; the cheapest first.

    The order is that of docs/memory.md.
    """
    held = [Settings(how) for how in subject.layers]
    yield held
    if asked.ema:
        held = [*held, *(replace(own, ema_on_cpu=True) for own in held)]
        yield held
    if not offloads_optimizer(config):
        held = [*held, *(replace(own, optimizer=EIGHT_BITS) for own in held)]
        yield held
    if subject.sharing:
        held = [*held, *(replace(own, sequence_parallel=ranks) for ranks in subject.sharing for own in held)]
        yield held
    if ALL_LAYERS in subject.layers:
        aside = Checkpointing(offload=True)
        held = [*held, *(replace(own, recomputes=aside) for own in held if own.recomputes == ALL_LAYERS)]
        yield held
    if subject.tiles:
        yield [*held, *(replace(own, tiles=TILES) for own in held)]


def _choice(
    file: str, config: dict[str, Any], settings: Settings, subject: Subject, algorithm: Algorithm, asked: Asked
) -> Choice:
    memory = _memory(config, settings, subject, algorithm, asked)
    capacity, held = SHARE * asked.gpu_memory * GIB, sum(own.total for own in memory.values())
    row, ranks = subject.row_kept(settings), settings.sequence_parallel
    # Of what is generated each response is a row of its own.
    of_step = asked.rows * (asked.generations if algorithm.generates else 1)
    of_group = -(-of_step * ranks // asked.gpus)
    rows = 1
    while 2 * rows <= of_group and held + 2 * rows * row <= capacity:
        rows *= 2
    if held + rows * row > capacity:
        return Choice(file, memory, 0, settings)
    memory['policy'] = replace(memory['policy'], activations=rows * row)
    micro_batches = -(-of_group // rows)
    each, passes = asked.rows / asked.gpus, subject.passes(settings)
    models = 1 + (len(algorithm.critics) if algorithm.generates else 0)
    moved = _offloaded(file, settings, subject, asked, micro_batches, of_group) * models
    shared = each * subject.exchanged(settings) / _link(asked, ranks)
    sent = models * _sent(subject.model, config, asked.gpus, micro_batches)
    return Choice(
        file,
        memory,
        rows,
        settings,
        micro_batches,
        each * (passes.model + passes.again) / asked.operations,
        sent / _link(asked, asked.gpus),
        moved / HOST + shared,
    )


def _memory(
    config: dict[str, Any], settings: Settings, subject: Subject, algorithm: Algorithm, asked: Asked
) -> dict[str, Memory]:
    own = estimate_memory(subject.model, config, 'bf16', asked.gpus, settings.optimizer, subject.spared)
    memory = {'policy': own}
    if algorithm.refers and not asked.use_lora:
        memory['reference'] = estimate_memory(subject.plain, config, 'bf16', asked.gpus)
    average = average_memory(subject.model, config, asked.gpus)
    if asked.ema:
        memory[f'average ({EMA})'] = Memory(0.0) if settings.ema_on_cpu else average
    if algorithm.generates:
        if algorithm.old_decay(0) is not None:
            memory[f'average ({OLD})'] = average
        memory |= {role.replace('_', ' '): own for role in algorithm.critics}
    return memory


def _offloaded(file: str, settings: Settings, subject: Subject, asked: Asked, micro_batches: int, rows: int) -> float:
    """Bytes of a device that go to the memory of its machine in a step, or come back from it."""
    trained = _trained_bytes(subject.model)
    moved = trained / asked.gpus * (1 + micro_batches) if 'offload' in file else 0.0
    if settings.recomputes is not None and settings.recomputes.offload:
        moved += 2 * rows * subject.row_inputs / settings.sequence_parallel
    if settings.ema_on_cpu:
        moved += trained / (asked.gpus if partitions_weights(load_deepspeed_config(file)) else 1)
    return moved


def _trained_bytes(model: nn.Module) -> float:
    return float(HALF * sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad))


def _sent(model: nn.Module, config: dict[str, Any], gpus: int, micro_batches: int) -> float:
    """Bytes that a device sends in a step: gradients, and weights where they are shared."""
    trained, every = _trained_bytes(model), float(HALF * _size(model))
    share, stage = (gpus - 1) / gpus, zero_stage(config)
    if stage == 0:
        return 2 * trained * share
    if stage < 3:
        return trained * share * (micro_batches + 1)
    return share * micro_batches * (2 * every + trained)


def _link(asked: Asked, ranks: int) -> float:
    """Bytes a second between so many devices."""
    return (asked.accelerator.link if ranks <= PER_MACHINE else asked.network) * 1e9
