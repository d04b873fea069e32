"""What the models of a run take of the memory of a device, by their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from math import prod
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
from align_anything.engines.deepspeed_config import offloads_optimizer, offloads_parameters, zero_stage
from align_anything.models import structure
from align_anything.models.adapter import bare_model
from align_anything.models.any_model import add_score_head
from align_anything.models.family import FamilySpec
from align_anything.models.score import SCORE_HEAD
from align_anything.models.spec import Spec
from align_anything.models.trainable import component_of, count
from align_anything.models.work import share_of_experts
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import build_on_meta, skeleton
from align_anything.trainers.runs.checkpoints import averages_of
from align_anything.trainers.runs.checks import precision_of_reference, reference_cache_of
from align_anything.trainers.runs.roles import critic_cfgs, critic_spec, judges_of, require_head, spec_of_judge
from align_anything.trainers.runs.settings import DTYPES, engine_config, precision_of, spec_of

JUDGES = {MODEL: 'reward model', COST: 'cost model'}


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds of a model on its device."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0

    @property
    def total(self) -> float:
        return sum(astuple(self))

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def estimate_memory(model: nn.Module, config: Mapping[str, Any], precision: str) -> Memory:
    """What weights, gradients and Adam states take on one rank's device under the ZeRO stage of `config`.

    ZeRO-1 shares the optimizer states among ranks, ZeRO-2 the gradients too, ZeRO-3 the weights too (Rajbhandari et
    al., 2020, arXiv:1910.02054, section 3). Half precision keeps float32 masters with the Adam moments.
    """
    ranks, stage = world_size(), zero_stage(config)
    everything = sum(count(parameter) for parameter in model.parameters())
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    width = DTYPES[precision].itemsize
    states = 8 if precision == 'fp32' else 12
    return Memory(
        weights=0.0 if offloads_parameters(config) else everything * width / (ranks if stage == 3 else 1),
        gradients=trained * width / (ranks if stage >= 2 else 1),
        optimizer=0.0 if offloads_optimizer(config) else trained * states / (ranks if stage >= 1 else 1),
    )


def average_memory(model: nn.Module, config: Mapping[str, Any]) -> Memory:
    """What an average of the trained weights takes, in float32 where the weights are."""
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad)
    ranks = world_size() if zero_stage(config) == 3 else 1
    return Memory(0.0 if offloads_parameters(config) else trained * torch.float32.itemsize / ranks)


def activations_of(model: nn.Module, spec: FamilySpec, tokens: int, width: int, recomputes: bool) -> float:
    """About how many bytes of the language model `tokens` hold until the backward pass, `width` bytes to a number.

    What goes into and out of each of its matrices is counted, of experts those that are chosen, and twice what goes
    into a norm; activation functions keep about as much as layers share of that. The head works in chunks and keeps
    nothing. What `recomputes` keeps the input of each layer, and all of one layer at a time (Chen et al., 2016,
    arXiv:1604.06174).
    """
    named = [(name, component_of(name, spec.components), weight) for name, weight in model.named_parameters()]
    if not any(weight.requires_grad for _, component, weight in named if component != SCORE_HEAD):
        return 0.0
    text = spec.config.get_text_config()
    chosen = share_of_experts(text.to_dict())
    looked_up = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    unread = {id(layer.weight) for layer in (*looked_up, bare_model(model).get_output_embeddings()) if layer}
    each = 0.0
    for name, component, weight in named:
        if component == 'language_model' and id(weight) not in unread and not name.endswith('bias'):
            # What is not a matrix scales what a norm has made of its input.
            numbers = sum(weight.shape[-2:]) * prod(weight.shape[:-2]) if weight.ndim > 1 else 2 * weight.numel()
            each += numbers * (chosen if '.experts.' in name else 1)
    layers = text.num_hidden_layers
    return tokens * width * (layers * text.hidden_size + each / layers if recomputes else each)


def memory_of_run(
    cfgs: RunCfgs, pair: Pair, algorithm: Algorithm, spec: Spec, policy: nn.Module, tokens: int
) -> dict[str, Memory]:
    """The memory of each model that the run holds, by what it is, `policy` as `build_on_meta` made it first.

    `tokens` are those of the largest micro-batch, as its collator counts them.

    Raises SettingsError or ModelError for a critic or a judge that cannot be used, as the run would. No weights are
    read.
    """
    (config, _), precision = engine_config(cfgs), precision_of(cfgs)
    recomputes = cfgs.train_cfgs.gradient_checkpointing

    def learns(model: nn.Module) -> Memory:
        own = estimate_memory(model, config, precision)
        if spec.unit != 'token':
            return own
        return replace(own, activations=activations_of(model, spec, tokens, DTYPES[precision].itemsize, recomputes))

    held = {'policy': learns(policy)} if algorithm.trains else {'model': estimate_memory(policy, config, precision)}
    refers = algorithm.refers and reference_cache_of(algorithm) is None
    # Without a cache, and unless the policy without its adapter is it, a copy is asked while the run trains.
    if refers and not without_adapter_is_reference(cfgs, algorithm):
        held['reference'] = _reference(cfgs, algorithm, spec, policy)
    for name in averages_of(cfgs, algorithm):
        held[f'average ({name})'] = average_memory(policy, config)
    if not algorithm.generates:
        return held
    for role, learned in algorithm.critics.items():
        own = critic_cfgs(role, cfgs, algorithm)
        critic, _ = build_on_meta(own, critic_spec(role, cfgs, spec, pair), learned)
        held[role.replace('_', ' ')] = learns(critic)
    for name, asked in judges_of(cfgs, algorithm).items():
        require_head(asked.source)
        judge = add_score_head(structure.skeleton(spec_of_judge(cfgs, asked, pair).config))
        held[JUDGES[name]] = estimate_memory(judge.requires_grad_(False), config, precision)
    return held


def memory_table(held: Mapping[str, Memory], tokens: int) -> Table:
    """A line for each model and, of several, one for all."""
    names = [field.name for field in fields(Memory)]
    title = 'Memory of one rank; ' + (
        f'activations: about, {tokens:,} tokens in the language model' if tokens else 'activations are not estimated'
    )
    table = Table('', *names, 'total', title=title)
    together = {'all': sum(held.values(), Memory(0.0))} if len(held) > 1 else {}
    for name, memory in {**held, **together}.items():
        table.add_row(name, *(f'{size / 2**30:.3f} GiB' for size in (*astuple(memory), memory.total)))
    return table


def _reference(cfgs: RunCfgs, algorithm: Reference, spec: Spec, policy: nn.Module) -> Memory:
    """That of a frozen copy, less the weights that the policy keeps frozen and shares with it."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    same = source == cfgs.model_cfgs.model_name_or_path
    if not same:
        models = cfgs.model_cfgs.model_copy(update={'model_name_or_path': source})
        spec = spec_of(cfgs.model_copy(update={'model_cfgs': models}))
    config = load_deepspeed_config(algorithm.reference_ds_cfgs or cfgs.train_cfgs.ds_cfgs)
    precision = precision_of_reference(cfgs, algorithm)
    total = estimate_memory(skeleton(spec).requires_grad_(False), config, precision)
    stages = zero_stage(config), zero_stage(load_deepspeed_config(cfgs.train_cfgs.ds_cfgs))
    if not same or precision != precision_of(cfgs) or 3 in stages:
        return total
    frozen = sum(count(parameter) for parameter in policy.parameters() if not parameter.requires_grad)
    return Memory(total.weights - frozen * DTYPES[precision].itemsize)
