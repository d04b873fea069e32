"""Low-rank adapters on exactly the layers that were asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.core.registry import nearest
from align_anything.models.structure import MEDIA_CODEC
from align_anything.models.trainable import Components, compiled, component_of

if TYPE_CHECKING:
    from peft import PeftModel

    from align_anything.configs.schema import LoraCfgs

logger = get_logger(__name__)
AUTO, ALL_LINEAR = 'auto', 'all-linear'
A_NAME = re.compile(r'[\w.]+')
"""What is the name of a module, or the end of one; anything else is a regular expression."""
LINEAR = (nn.Linear, Conv1D)
"""Layers that can get an adapter; those of GPT-2 are linear by another name."""
EXPERT_WEIGHTS = ('.experts.gate_up_proj', '.experts.down_proj')


def apply_lora(
    model: PreTrainedModel,
    cfgs: LoraCfgs,
    components: Components,
    *,
    unfreeze_patterns: Sequence[str] = (),
    also_save: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> PeftModel:
    """Adds adapters to `model` and freezes everything else, except `modules_to_save` and the modules of `also_save`.

    Initial weights come from torch's generator, which has to be seeded alike on every rank. The adapters get
    `dtype`, or that of the model: an engine that keeps float32 masters wants them like the weights. Raises ModelError
    for a target or module to save that names nothing, for an embedding to save that would no longer share its weight
    with the head, and for `unfreeze_patterns`: what they would train is not part of an adapter, so it would be lost on
    saving.
    """
    from peft import LoraConfig, get_peft_model

    if unfreeze_patterns:
        raise ModelError(
            f'unfreeze_patterns {list(unfreeze_patterns)} together with LoRA: an adapter does not hold these weights, '
            'so they would be lost. Name the modules in lora_cfgs.modules_to_save instead.'
        )
    to_save = list(dict.fromkeys([*named_modules(model, cfgs.modules_to_save or [], components), *also_save]))
    _check_modules_to_save(model, to_save, components)
    ties = _saves_tied_weights(model, to_save)
    targets = target_modules(model, cfgs.target_modules, components, cfgs.vision_lora, exclude=to_save)
    config = LoraConfig(
        r=cfgs.r,
        lora_alpha=cfgs.lora_alpha,
        lora_dropout=cfgs.lora_dropout,
        use_rslora=cfgs.use_rslora,
        use_dora=cfgs.use_dora,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        modules_to_save=to_save or None,
        ensure_weight_tying=ties,
        # peft asks models of any of its tasks how they generate.
        task_type=cfgs.task_type if model.can_generate() else None,
        inference_mode=cfgs.inference_mode,
        bias='none',
    )
    model_dtype = dtype or model.dtype
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if ties and not _still_tied(adapted.get_base_model()):
        raise ModelError(
            f'lora_cfgs.modules_to_save: {", ".join(to_save)} of this model share a weight with its head, and peft '
            'knows no such embedding but embed_tokens, so that the head would stay as it is. Leave them out, or train '
            'without LoRA.'
        )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model_dtype)
    return adapted


def named_modules(model: PreTrainedModel, names: Sequence[str], components: Components) -> list[str]:
    """Returns `names` of modules with those of components, such as `mm_proj`, replaced by the modules of each.

    A parameter of a component that lies in no module of it cannot be saved with an adapter; it stays as it is.
    """
    modules = dict(model.named_modules())
    found: list[str] = []
    for name in names:
        for prefix in components.get(name, [name]):
            if prefix in modules and isinstance(modules[prefix], nn.ModuleDict | nn.ModuleList):
                # peft wraps modules that are called.
                found += [f'{prefix}.{child}' for child, _ in modules[prefix].named_children()]
            elif name in components and prefix not in modules:
                logger.warning(
                    'lora_cfgs.modules_to_save: %s is a parameter beside %s, and stays frozen.', prefix, name
                )
            else:
                found.append(prefix)
    return found


def target_modules(
    model: PreTrainedModel,
    targets: str | Sequence[str],
    components: Components,
    vision_lora: bool = False,
    exclude: Sequence[str] = (),
) -> list[str]:
    """Returns the full names of the linear layers that get an adapter, in the model's order.

    'auto' is every linear layer of the language model except its output embedding, and with `vision_lora` also those
    of the vision tower; 'all-linear' is those of all components. An entry of a list is the last name or names of a
    module (`q_proj`, `self_attn.q_proj`), looked for in the same components as by 'auto', or a full name, which may lie
    in any, or a regular expression that a full name matches as a whole, as in peft. Modules under `exclude` are left
    out, and the codec of media never gets any. Raises ModelError when an entry names no linear layer, or is no
    expression.
    """
    chosen_components = {'language_model', 'vision_tower'} if vision_lora else {'language_model'}
    output = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not output and not _is_named(name, exclude)
        if component_of(f'{name}.weight', components) != MEDIA_CODEC
    ]
    chosen = [name for name in linear if component_of(f'{name}.weight', components) in chosen_components]
    if targets == AUTO:
        if not chosen:
            raise ModelError("target_modules 'auto' finds no linear layer in the language model; name the layers.")
        _tell_about_experts(model)
        return chosen
    targets = [targets] if isinstance(targets, str) else targets
    if list(targets) == [ALL_LINEAR]:
        _tell_about_experts(model)
        return linear
    return layers_named(targets, linear, chosen, ' or '.join(sorted(chosen_components)))


def layers_named(targets: Sequence[str], linear: Sequence[str], chosen: Sequence[str], where: str) -> list[str]:
    """Returns those of `linear` that `targets` name, in their order: an end of a name among `chosen`, a full name, or
    a regular expression that a full name matches as a whole.

    Raises ModelError when an entry names none, saying what there is in `where`, or is no expression.
    """
    found: set[str] = set()
    for target in targets:
        if A_NAME.fullmatch(target):
            hits = {name for name in chosen if name.endswith(f'.{target}')} | {target} & set(linear)
        else:
            expression = compiled(target, 'lora_cfgs.target_modules')
            hits = {name for name in linear if expression.fullmatch(name)}
        if not hits:
            last_names = sorted({name.rsplit('.', 1)[-1] for name in chosen})
            raise ModelError(
                f"lora_cfgs.target_modules: no linear layer in {where} is called '{target}'."
                f'{nearest(target, last_names)} There are: {", ".join(last_names)}.'
            )
        found |= hits
    return [name for name in linear if name in found]


def _is_named(name: str, endings: Sequence[str]) -> bool:
    """Whether a module is one of those that peft finds by the end of their names, or lies inside of one."""
    dotted = f'.{name}.'
    return any(f'.{ending}.' in dotted for ending in endings)


def _check_modules_to_save(model: PreTrainedModel, names: Sequence[str], components: Components) -> None:
    modules = [name for name, _ in model.named_modules()]
    codec = tuple(f'{prefix}.' for prefix in components.get(MEDIA_CODEC, ()))
    for wanted in names:
        found = [name for name in modules if f'.{name}'.endswith(f'.{wanted}')]
        if codec and any(f'{name}.'.startswith(codec) for name in found):
            raise ModelError(f"lora_cfgs.modules_to_save: '{wanted}' is in the codec of media, which never trains.")
        if not found:
            last_names = sorted({name.rsplit('.', 1)[-1] for name in modules})
            raise ModelError(f"lora_cfgs.modules_to_save: no module is called '{wanted}'.{nearest(wanted, last_names)}")


def _saves_tied_weights(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """Whether a module to save shares its weight with another, which then has to follow it."""
    tied = {*model.all_tied_weights_keys.keys(), *model.all_tied_weights_keys.values()}
    modules = {key.rsplit('.', 1)[0] for key in tied}
    return any(f'.{module}'.endswith(f'.{name}') for module in modules for name in names)


def _still_tied(model: PreTrainedModel) -> bool:
    """Whether head and embedding have one weight, where the model has both."""
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def _tell_about_experts(model: PreTrainedModel) -> None:
    experts = [name for name, _ in model.named_parameters() if name.endswith(EXPERT_WEIGHTS)]
    if experts:
        logger.warning(
            'target_modules adapts linear layers; fused expert weights (%s, …) are none, so they stay frozen.',
            experts[0],
        )
