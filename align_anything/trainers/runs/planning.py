"""A run on paper: which ZeRO stage, micro-batch and rollout split fit some devices, and how long a step would take.

From the configuration of a model alone; no weights are read, and nothing is measured. What is assumed stands in
docs/planning.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.flops import Accelerator, Flops
from align_anything.engines.deepspeed_config import zero_stage
from align_anything.models import structure
from align_anything.models.activations import activations_of
from align_anything.models.checkpointing import ALL_LAYERS
from align_anything.models.lora import apply_lora
from align_anything.models.trainable import count
from align_anything.models.work import Sizes, Span, Work, patch_area, work_of_model
from align_anything.trainers.runs.memory import Memory, estimate_memory
from align_anything.trainers.runs.verdict import SHARE

FILES = ('ds_z0_config.json', 'ds_z2_config.json', 'ds_z3_config.json', 'ds_z3_offload_config.json')
"""DeepSpeed files that are tried, in the order of what they cost."""
HALF = 2
"""Bytes of a number in bfloat16."""
PER_MACHINE = 8
READING = 0.7
"""Share of the bandwidth of a device's memory that decoding reaches."""
HOST = 25e9
"""Bytes a second between a device and the memory of its machine, which offloaded states take."""
GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for.

    Attributes:
        gpus, gpu_memory: how many devices, and the GiB of each.
        accelerator: what one can do.
        prompt, response: tokens of each; media of prompts come on top.
        images, image_size: pictures of a prompt, and the pixels of a side of each.
        rows: prompts of an optimizer step, over all devices.
        generations: responses to a prompt, where they are generated.
        use_lora: whether adapters train.
        efficiency: share of what the device can do at best that training reaches, recomputation counted.
        network: bytes a second of a device to other machines, 10⁹ of them.
    """

    gpus: int
    gpu_memory: float
    accelerator: Accelerator
    prompt: int = 512
    response: int = 512
    images: int = 0
    image_size: int = 448
    rows: int = 64
    generations: int = 8
    use_lora: bool = False
    efficiency: float = 0.5
    network: float = 50.0


@dataclass(frozen=True)
class Architecture:
    """What is known of a family from a configuration alone."""

    config: Any
    components: dict[str, list[str]]
    codes: None = None
    media_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Choice:
    """How one DeepSpeed file would do.

    Attributes:
        file: its name.
        memory: of one device, by model.
        rows: of a micro-batch, responses where they are generated; 0 where not even one fits.
        micro_batches: of a device in a step.
        computing, communicating: seconds of the updates of a step, of which the longer decides.
    """

    file: str
    memory: dict[str, Memory]
    rows: int
    micro_batches: int = 0
    computing: float = 0.0
    communicating: float = 0.0

    @property
    def fits(self) -> bool:
        return self.rows > 0

    @property
    def seconds(self) -> float:
        return max(self.computing, self.communicating)


@dataclass(frozen=True)
class Rollouts:
    """How responses would be generated.

    Attributes:
        parallel: devices that share a copy of the model.
        together: responses of a copy at once.
        shared: seconds of generation on all devices, which then update.
        apart: devices that generate while the others update, and the seconds of a step so; None where that is slower.
    """

    parallel: int
    together: int
    shared: float
    apart: tuple[int, float] | None = None


@dataclass(frozen=True)
class Plan:
    """What was found, see `Choice` and `Rollouts`.

    Attributes:
        weights, trained: how many numbers there are, and how many of them train.
        flops: operations of a step over all devices.
        tokens: tokens of a step, media included.
    """

    weights: int
    trained: int
    flops: Flops
    tokens: int
    choices: list[Choice]
    rollouts: Rollouts | None = None

    @property
    def best(self) -> Choice | None:
        """The quickest one that fits."""
        fitting = [choice for choice in self.choices if choice.fits]
        return min(fitting, key=lambda choice: choice.seconds, default=None)

    @property
    def seconds(self) -> float | None:
        """Of a step, with generation; None where nothing fits."""
        if self.best is None:
            return None
        if self.rollouts is None:
            return self.best.seconds
        shared = self.rollouts.shared + self.best.seconds
        return shared if self.rollouts.apart is None else min(shared, self.rollouts.apart[1])


def plan(config: Any, algorithm: Algorithm, asked: Asked) -> Plan:
    """Plans training `algorithm` on a model of the transformers configuration `config`.

    Raises ModelError for a configuration that no class here trains, and SettingsError for an algorithm that trains
    nothing.
    """
    if not algorithm.trains:
        raise SettingsError([f'--algorithm: {algorithm.name} trains nothing, so there is nothing to plan.'])
    spec = Architecture(config, structure.components(config))
    plain = structure.skeleton(config).to(torch.bfloat16)
    frozen = work_of_model(plain.requires_grad_(False), spec, recomputes=0.0)
    weights = sum(count(parameter) for parameter in plain.parameters())
    model = _tuned(structure.skeleton(config).to(torch.bfloat16), spec, asked.use_lora)
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    work = work_of_model(model, spec, recomputes=1.0)
    sizes = _sizes(spec, algorithm, asked)
    passes = _passes(work, frozen, algorithm, sizes)
    choices = list(_choices(model, plain, spec, algorithm, asked, passes, sizes))
    tokens = sum(span.length for span in sizes.text) * asked.rows
    rollouts = _rollouts(config, frozen, weights, algorithm, asked, choices) if algorithm.generates else None
    total = Flops(*(asked.rows * value for value in (passes.forward, passes.backward, passes.again)))
    return Plan(weights, trained, total, tokens, choices, rollouts)


def _tuned(model: nn.Module, spec: Architecture, use_lora: bool) -> nn.Module:
    return apply_lora(model, LoraCfgs(use_lora=True), spec.components) if use_lora else model


def _sizes(spec: Architecture, algorithm: Algorithm, asked: Asked) -> Sizes:
    """What the policy is given with one prompt and its responses."""
    responses = {'preference': 2, 'prompt': asked.generations}.get(algorithm.task, 1)
    patches = asked.image_size**2 // patch_area(spec)
    media = asked.images * (patches // _merged(spec.config))
    prompt = asked.prompt + media
    own = Span(asked.response, prompt)
    text = [Span(prompt + asked.response)] if responses == 1 else [Span(prompt), *[own] * responses]
    vocabulary = spec.config.get_text_config().vocab_size
    vision = [Span(patches)] * asked.images
    return Sizes(text, media, vision, scored=float(responses * asked.response * vocabulary))


def _merged(config: Any) -> int:
    """Patches that make one token."""
    vision = config.to_dict().get('vision_config') or {}
    return int(vision.get('spatial_merge_size') or 1) ** 2


def _passes(work: Work, frozen: Work, algorithm: Algorithm, sizes: Sizes) -> Flops:
    """The operations for one prompt: the update, and what scores its responses beside it."""
    update = work.total(sizes)
    scoring = frozen.total(sizes).forward_only()
    beside = int(algorithm.refers) + int(algorithm.generates)
    if algorithm.task == 'unpaired':
        # The responses of other rows.
        beside += 1
    for _ in range(beside):
        update += scoring
    if algorithm.generates:
        for _ in algorithm.critics:
            update += work.total(replace(sizes, scored=0.0)) + scoring
    return update


def _choices(
    model: nn.Module,
    plain: nn.Module,
    spec: Architecture,
    algorithm: Algorithm,
    asked: Asked,
    passes: Flops,
    sizes: Sizes,
) -> Iterator[Choice]:
    capacity = SHARE * asked.gpu_memory * GIB
    # Of what is generated each response is a row of its own.
    of_prompt = asked.generations if algorithm.generates else 1
    per_device = -(-asked.rows * of_prompt // asked.gpus)
    row_tokens = sum(span.length for span in sizes.text) if of_prompt == 1 else sizes.text[0].length + asked.response
    for file in FILES:
        config = load_deepspeed_config(file)
        memory = {'policy': estimate_memory(model, config, 'bf16', asked.gpus)}
        if algorithm.refers and not asked.use_lora:
            memory['reference'] = estimate_memory(plain, config, 'bf16', asked.gpus)
        if algorithm.generates:
            memory |= {role.replace('_', ' '): memory['policy'] for role in algorithm.critics}
        held = sum(own.total for own in memory.values())
        row = activations_of(model, spec, row_tokens, HALF, ALL_LAYERS)
        rows = 1
        while 2 * rows <= per_device and held + 2 * rows * row <= capacity:
            rows *= 2
        if held + rows * row > capacity:
            yield Choice(file, memory, 0)
            continue
        memory['policy'] = replace(memory['policy'], activations=rows * row)
        micro_batches = -(-per_device // rows)
        each = asked.rows / asked.gpus
        computing = each * (passes.model + passes.again) / (asked.efficiency * asked.accelerator.tflops * 1e12)
        models = 1 + (len(algorithm.critics) if algorithm.generates else 0)
        sent = models * _sent(model, config, asked.gpus, micro_batches)
        offloaded = 'offload' in file
        moved = models * _trained_bytes(model) / asked.gpus * (1 + micro_batches) / HOST if offloaded else 0.0
        yield Choice(file, memory, rows, micro_batches, computing + moved, sent / _link(asked))


def _trained_bytes(model: nn.Module) -> float:
    return float(HALF * sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad))


def _sent(model: nn.Module, config: dict[str, Any], gpus: int, micro_batches: int) -> float:
    """Bytes that a device sends in a step: gradients, and weights where they are shared."""
    trained, every = _trained_bytes(model), float(HALF * sum(map(count, model.parameters())))
    share, stage = (gpus - 1) / gpus, zero_stage(config)
    if stage == 0:
        return 2 * trained * share
    if stage < 3:
        return trained * share * (micro_batches + 1)
    return share * micro_batches * (2 * every + trained)


def _link(asked: Asked) -> float:
    return (asked.accelerator.link if asked.gpus <= PER_MACHINE else asked.network) * 1e9


def _rollouts(
    config: Any, work: Work, weights: int, algorithm: Algorithm, asked: Asked, choices: Sequence[Choice]
) -> Rollouts:
    capacity = SHARE * asked.gpu_memory * GIB
    parallel = 1
    while HALF * weights > 0.8 * parallel * capacity and parallel < asked.gpus:
        parallel *= 2
    length = asked.prompt + asked.response
    of_token = kept_bytes(config)
    together = max(1, int((parallel * capacity - HALF * weights) // (of_token * length)))

    def seconds(devices: int) -> float:
        copies = max(1, devices // parallel)
        responses = -(-asked.rows * asked.generations // copies)
        waves = -(-responses // together)
        at_once = -(-responses // waves)
        read = HALF * weights + at_once * of_token * (asked.prompt + asked.response / 2)
        best = asked.efficiency * asked.accelerator.tflops * 1e12 * parallel
        one = work.total(Sizes([Span(1, length)], scored=float(config.get_text_config().vocab_size))).forward
        token = max(read / (READING * asked.accelerator.bandwidth * 1e9 * parallel), at_once * one / best)
        # A prompt is read once for all of its responses.
        prefill = work.total(Sizes([Span(asked.prompt)])).forward * -(-asked.rows // copies) / best
        return waves * asked.response * token + prefill

    shared = seconds(asked.gpus)
    best = min((choice.seconds for choice in choices if choice.fits), default=None)
    apart = None
    if best is not None:
        for devices in range(parallel, asked.gpus, parallel):
            # Updates on fewer devices take longer in proportion.
            took = max(seconds(devices), best * asked.gpus / (asked.gpus - devices))
            if took < (shared + best if apart is None else apart[1]):
                apart = devices, took
    return Rollouts(parallel, together, shared, apart)


def kept_bytes(config: Any) -> float:
    """Returns the bytes that a model keeps of each token while it generates, in half precision."""
    text = config.get_text_config().to_dict()
    layers = text['num_hidden_layers']
    if text.get('kv_lora_rank'):
        return float(HALF * layers * (text['kv_lora_rank'] + text['qk_rope_head_dim']))
    heads = text.get('num_attention_heads')
    size = text.get('head_dim') or text['hidden_size'] // heads
    return float(2 * HALF * layers * (text.get('num_key_value_heads') or heads) * size)
