"""What the models of a run take of the memory of a device, by their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from rich.table import Table
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.referring import Reference, without_adapter_is_reference
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.online import COST, MODEL
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.engines.deepspeed_config import (
    offloads_optimizer,
    offloads_parameters,
    partitions_weights,
    secondary_ranks,
    zero_stage,
)
from align_anything.engines.fsdp_config import accumulates_whole_gradients
from align_anything.engines.optim import state_bytes
from align_anything.models import structure
from align_anything.models.any_model import add_score_head
from align_anything.models.quantization import bytes_spared
from align_anything.models.spec import Spec
from align_anything.models.trainable import count
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import activations, build_on_meta, skeleton
from align_anything.trainers.runs.checkpoints import EMA, averages_of
from align_anything.trainers.runs.checks import precision_of_reference, reference_cache_of
from align_anything.trainers.runs.roles import critic_cfgs, critic_spec, judges_of, require_head, spec_of_judge
from align_anything.trainers.runs.settings import DTYPES, engine_config, precision_of, sharing_of, spec_of

JUDGES = {MODEL: 'reward model', COST: 'cost model'}


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds of a model on its device."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float | None = 0.0
    """None where it is not known; sums leave it out."""

    @property
    def total(self) -> float:
        return sum(filter(None, astuple(self)))

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            *((mine or 0) + (theirs or 0) for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )


def estimate_memory(
    model: nn.Module,
    config: Mapping[str, Any],
    precision: str,
    ranks: int | None = None,
    optimizer: str = '',
    spared: float = 0.0,
) -> Memory:
    """What weights, gradients and Adam states take on one rank's device under the ZeRO stage of `config`.

    `ranks` is how many there are; None for those of this run. `optimizer` is the one that steps, and `spared` how many
    bytes of weights are not there because they are quantised.

    ZeRO-1 shares the optimizer states among ranks, ZeRO-2 the gradients too, ZeRO-3 the weights too (Rajbhandari et
    al., 2020, arXiv:1910.02054, section 3). FSDP2 shares all of them, but for the gradients of the micro-batches before
    the last one of a step. Half precision keeps float32 masters with the Adam moments. hpZ keeps a second copy of the
    weights, shared by the ranks of a machine (Wang et al., 2023, arXiv:2306.10209, section 3.2).
    """
    ranks = world_size() if ranks is None else ranks
    # FSDP2 shares what ZeRO-3 does.
    stage = 3 if partitions_weights(config) else zero_stage(config)
    everything = sum(count(parameter) for parameter in model.parameters())
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    width = DTYPES[precision].itemsize
    states = state_bytes(optimizer) + (0 if precision == 'fp32' else torch.float32.itemsize)
    held = everything * width - spared
    weights = held / (ranks if stage == 3 else 1)
    if secondary_ranks(config) > 1:
        weights += held / secondary_ranks(config)
    return Memory(
        weights=0.0 if offloads_parameters(config) else weights,
        gradients=trained * width / (ranks if stage >= 2 else 1)
        + (trained * torch.float32.itemsize if accumulates_whole_gradients(config) else 0.0),
        optimizer=0.0 if offloads_optimizer(config) else trained * states / (ranks if stage >= 1 else 1),
    )


def average_memory(model: nn.Module, config: Mapping[str, Any], ranks: int | None = None) -> Memory:
    """What an average of the trained weights takes, in float32 where the weights are; `ranks` as above."""
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    ranks = (world_size() if ranks is None else ranks) if partitions_weights(config) else 1
    return Memory(0.0 if offloads_parameters(config) else trained * torch.float32.itemsize / ranks)


def memory_of_run(
    cfgs: RunCfgs,
    pair: Pair,
    algorithm: Algorithm,
    spec: Spec,
    policy: nn.Module,
    size: int,
    positions: Mapping[str, int] | None = None,
) -> dict[str, Memory]:
    """The memory of each model that the run holds, by what it is, `policy` as `build_on_meta` made it first.

    `size` is that of the largest micro-batch: tokens, as its collator counts them, or samples denoised at once; of
    token models, `positions` are those that go through each tower.

    Raises SettingsError or ModelError for a critic or a judge that cannot be used, as the run would. No weights are
    read.
    """
    (config, optimizer), precision = engine_config(cfgs), precision_of(cfgs)

    def held_of(model: nn.Module, spec: Spec, optimizer: str = '') -> Memory:
        return estimate_memory(model, config, precision, optimizer=optimizer, spared=_spared(cfgs, spec, model))

    def learns(model: nn.Module, learned: Algorithm) -> Memory:
        own = held_of(model, spec, optimizer)
        return replace(own, activations=activations(cfgs, spec, model, learned, size, positions or {}))

    if algorithm.trains:
        held = {'policy': learns(policy, algorithm)}
    else:
        held = {'model': held_of(policy, spec)}
    refers = algorithm.refers and reference_cache_of(algorithm) is None
    # Without a cache, and unless the policy without its adapter is it, a copy is asked while the run trains.
    if refers and not without_adapter_is_reference(cfgs, algorithm):
        held['reference'] = _reference(cfgs, algorithm, spec, policy)
    for name in averages_of(cfgs, algorithm):
        on_cpu = name == EMA and cfgs.diffusion_cfgs.ema_on_cpu
        held[f'average ({name})'] = Memory(0.0) if on_cpu else average_memory(policy, config)
    if not algorithm.generates:
        return held
    for role, learned in algorithm.critics.items():
        own = critic_cfgs(role, cfgs, algorithm)
        critic, _ = build_on_meta(own, critic_spec(role, cfgs, spec, pair), learned)
        held[role.replace('_', ' ')] = learns(critic, learned)
    for name, asked in judges_of(cfgs, algorithm).items():
        require_head(asked.source)
        of_judge = spec_of_judge(cfgs, asked, pair)
        judge = add_score_head(structure.skeleton(of_judge.config))
        held[JUDGES[name]] = held_of(judge.requires_grad_(False), of_judge)
    return held


def total(held: Mapping[str, Memory]) -> float:
    """Returns the bytes of all models together."""
    return sum(memory.total for memory in held.values())


def memory_table(held: Mapping[str, Memory], counted: str) -> Table:
    """A line for each model and, of several, one for all; `counted` says of what activations are."""
    names = [field.name for field in fields(Memory)]
    title = f'Memory of one rank; activations: {counted}'
    table = Table('', *names, 'total', title=title)
    together = {'all': sum(held.values(), Memory(0.0))} if len(held) > 1 else {}
    for name, memory in {**held, **together}.items():
        sizes = (*astuple(memory), memory.total)
        table.add_row(name, *('not known' if size is None else f'{size / 2**30:.3f} GiB' for size in sizes))
    return table


def _reference(cfgs: RunCfgs, algorithm: Reference, spec: Spec, policy: nn.Module) -> Memory:
    """That of a frozen copy, less the weights that the policy keeps frozen and shares with it."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    same = source == cfgs.model_cfgs.model_name_or_path
    if not same:
        models = cfgs.model_cfgs.model_copy(update={'model_name_or_path': source})
        spec = spec_of(cfgs.model_copy(update={'model_cfgs': models}))
    own = algorithm.reference_ds_cfgs
    config = sharing_of(cfgs) if own is None else load_deepspeed_config(own)
    precision = precision_of_reference(cfgs, algorithm)
    frozen_copy = skeleton(spec).requires_grad_(False)
    total = estimate_memory(frozen_copy, config, precision, spared=_spared(cfgs, spec, frozen_copy))
    partitioned = partitions_weights(config) or partitions_weights(sharing_of(cfgs))
    if not same or precision != precision_of(cfgs) or partitioned:
        return total
    frozen = sum(count(parameter) for parameter in policy.parameters() if not parameter.requires_grad)
    return Memory(max(0.0, total.weights - frozen * DTYPES[precision].itemsize))


def _spared(cfgs: RunCfgs, spec: Spec, model: nn.Module) -> float:
    """Bytes of weights that are not there because they are quantised."""
    return bytes_spared(cfgs.bnb_cfgs, model, spec.components, DTYPES[precision_of(cfgs)].itemsize)
