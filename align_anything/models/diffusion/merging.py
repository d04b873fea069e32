"""Saved adapters of pipelines put into the pipelines that they were trained on, or written for other programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import ModelError
from align_anything.models.diffusion.checkpoint import denoiser_parts, load_denoiser, load_spec, pipeline_folder
from align_anything.models.diffusion.export import export_denoiser
from align_anything.models.diffusion.lora import PEFT_PREFIX, apply_lora
from align_anything.models.diffusion.saved_lora import base_of, load_saved_lora, roles_in, stored_lora

if TYPE_CHECKING:
    from peft import PeftModel

    from align_anything.models.diffusion.spec import DiffusionSpec

TYPES = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}
MUST_AGREE = ('r', 'lora_alpha', 'use_rslora', 'use_dora')


def merge_pipeline(source: str | Path, out: str | Path, base: str | None = None) -> DiffusionSpec:
    """Writes the pipeline under the adapter in `source`, with the adapter in it, to `out`; returns its rules.

    The sums are taken in float32 and stored in the type that the pipeline has each weight in. What the adapter does not
    touch comes from the pipeline as it is, as hard links where the disk allows.

    Args:
        base: folder or hub name of the pipeline; None for the one that the adapter records.

    Raises ModelError where there is no such pipeline, or the adapter was not trained on it.
    """
    spec = adapted_spec(source, base)
    adapted = adapted_denoiser(source, spec, load_denoiser(spec, torch.float32))
    types = _stored_types(spec, adapted.get_base_model())
    state = {
        name: tensor.to(types.get(name.removeprefix(PEFT_PREFIX).replace('.base_layer.', '.'), tensor.dtype))
        for name, tensor in adapted.state_dict().items()
    }
    export_denoiser(adapted, state, out, spec=spec, merge_adapter=True)
    return spec


def adapted_spec(source: str | Path, base: str | None = None) -> DiffusionSpec:
    """Returns the rules of the pipeline under an adapter, its text encoders trained along where the adapter has some.

    Raises ModelError where there is no such pipeline.
    """
    folder = pipeline_folder(base or base_of(source))
    spec = load_spec(folder)
    if roles_in(source) & {*spec.trainable_text}:
        spec.train_text()
    return spec


def adapted_denoiser(source: str | Path, spec: DiffusionSpec, denoiser: nn.Module) -> PeftModel:
    """Puts a saved adapter onto a denoiser; on the meta device it only checks that it fits, and says how it is set.

    Raises ModelError for an adapter of another pipeline, and one whose components differ in rank or alpha.
    """
    stored = {name: stored_lora(source, spec, name) for name in spec.denoisers}
    settings = {tuple(adapter.settings.get(key) for key in MUST_AGREE) for adapter, _ in stored.values()}
    if len(settings) != 1:
        raise ModelError(f'{source}: its components differ in rank or alpha, and are no one adapter.')
    prefixes = {name: '' if len(stored) == 1 else f'{name}.' for name in stored}
    targets = {f'{prefixes[name]}{key.rpartition(".lora_")[0]}' for name, (_, own) in stored.items() for key in own}
    cfgs = LoraCfgs(
        use_lora=True,
        lora_dropout=0.0,
        save_full_model=True,
        # As expressions they name themselves alone, and not all that ends like them.
        target_modules=[f'(?:{re.escape(name)})' for name in sorted(targets)],
        **dict(zip(MUST_AGREE, settings.pop(), strict=True)),
    )
    adapted = apply_lora(denoiser, cfgs, spec)
    load_saved_lora(adapted, source, spec)
    return adapted


def _stored_types(spec: DiffusionSpec, denoiser: nn.Module) -> Mapping[str, torch.dtype]:
    """The types that the files of a pipeline have the weights of its denoiser in, by the names of these.

    Weights that a file calls otherwise have its most frequent type; those in other files than safetensors are left out.
    """
    found: dict[str, torch.dtype] = {}
    for component, (prefix, part) in denoiser_parts(spec, denoiser).items():
        stored: dict[str, torch.dtype] = {}
        for file in sorted((spec.folder / component).glob('*.safetensors')):
            with safe_open(file, 'pt') as opened:
                stored |= {name: TYPES[opened.get_slice(name).get_dtype()] for name in opened.keys()}
        if stored:
            (usual, _), *_ = Counter(stored.values()).most_common(1)
            names = [name.replace('.base_layer.', '.') for name in part.state_dict() if '.lora_' not in name]
            found |= {f'{prefix}{name}': stored.get(name, usual) for name in names}
    return found
