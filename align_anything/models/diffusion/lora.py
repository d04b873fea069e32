"""Low-rank adapters of denoisers, in files that diffusers, kohya's scripts and ComfyUI read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.checkpoint import LORA_FILE, denoiser_class
from align_anything.models.diffusion.conditioned import LORA_TARGETS, Conditioned
from align_anything.models.diffusion.library import pipeline_class
from align_anything.models.export import ADAPTER
from align_anything.models.lora import ALL_LINEAR, AUTO, layers_named

if TYPE_CHECKING:
    from peft import PeftModel

    from align_anything.configs.schema import LoraCfgs
    from align_anything.models.diffusion.spec import DiffusionSpec

PEFT_PREFIX = 'base_model.model.'
UNET = 'unet'


def apply_lora(
    denoiser: nn.Module, cfgs: LoraCfgs, spec: DiffusionSpec, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """Adds adapters to a denoiser, in `dtype`, and freezes everything else.

    'auto' are the family's `lora_targets`, and those of text encoders where they are trained along; 'all-linear' every
    linear layer; an entry of a list is the end of a name, a full name, or a regular expression. Initial weights come
    from torch's generator, which has to be seeded alike on every rank. Raises ModelError for a target that names
    nothing, for what the file of such an adapter cannot hold, and where no pipeline would load it and it is not to be
    merged.
    """
    from peft import LoraConfig, get_peft_model

    if cfgs.modules_to_save:
        raise ModelError('lora_cfgs.modules_to_save: the file of an adapter of a pipeline holds no full modules.')
    if not cfgs.save_full_model:
        require_loadable(spec)
    targets = _targets(denoiser, cfgs.target_modules, spec)
    config = LoraConfig(
        r=cfgs.r,
        lora_alpha=cfgs.lora_alpha,
        lora_dropout=cfgs.lora_dropout,
        use_rslora=cfgs.use_rslora,
        use_dora=cfgs.use_dora,
        target_modules=targets,
        init_lora_weights='gaussian',
        bias='none',
    )
    adapted = get_peft_model(denoiser, config, autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted


def _targets(denoiser: nn.Module, wanted: str | Sequence[str], spec: DiffusionSpec) -> list[str]:
    linear = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if list(wanted) == [ALL_LINEAR]:
        return linear
    if list(wanted) == [AUTO]:
        # Some checkpoints of a family are without some of its layers.
        known = (*spec.lora_targets, *(LORA_TARGETS if spec.trains_text else ()))
        wanted = [target for target in known if any(name.endswith(f'.{target}') for name in linear)]
        if not wanted:
            raise ModelError(
                f"lora_cfgs.target_modules 'auto' finds none of {', '.join(spec.lora_targets)} in the {spec.denoiser}."
            )
    return layers_named(wanted, linear, linear, f'the {spec.denoiser}')


def require_loadable(spec: DiffusionSpec) -> None:
    """Raises ModelError where the pipeline of diffusers does not load adapters."""
    pipeline, denoiser = pipeline_class(spec.model_type, spec.folder), denoiser_class(spec, spec.denoiser)
    if 'load_lora_weights' not in dir(pipeline) or 'load_lora_adapter' not in dir(denoiser):
        raise ModelError(
            f'{spec.model_type} of diffusers does not load adapters into a {denoiser.__name__}: set '
            'lora_cfgs.save_full_model, so that they are merged into the weights that are saved.'
        )


def lora_state(adapted: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the weights of an adapter by the names `<module>.lora_A.weight` and `<module>.lora_B.weight`.

    `state` is what `adapted.state_dict()` would be if it were gathered; needed where it is partitioned (ZeRO-3).
    """
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(
        adapted, state_dict=dict(adapted.state_dict() if state is None else state), save_embedding_layers=False
    )
    return {name.removeprefix(PEFT_PREFIX): tensor.detach().contiguous().cpu() for name, tensor in own.items()}


def lora_file(spec: DiffusionSpec, name: str) -> str:
    """Returns the name of the file with the adapter of a component, one of `spec.denoisers`."""
    return LORA_FILE if name in (spec.denoiser, *spec.trainable_text) else f'pytorch_lora_weights_{name}.safetensors'


def role_of(spec: DiffusionSpec, name: str) -> str:
    """Returns what pipelines call the weights of a component in such a file; experts are the denoiser to them."""
    return name if name in spec.trainable_text else spec.denoiser


def export_lora(
    adapted: PeftModel, spec: DiffusionSpec, out_dir: str | Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes the adapter as what `load_lora_weights` of the pipeline reads, its alpha in the metadata.

    That of a second expert is a file of its own, to load with its name and `load_into_transformer_2`; those of text
    encoders are in the file of the denoiser.
    `state` as in `lora_state`. Raises ModelError for a pipeline that loads no adapters.
    """
    require_loadable(spec)
    kind = pipeline_class(spec.model_type, spec.folder)
    config = {key: _plain(value) for key, value in adapted.peft_config[ADAPTER].to_dict().items()}
    config['base_model_name_or_path'] = spec.source
    weights = lora_state(adapted, state)
    files: dict[str, dict[str, Any]] = {}
    for name in spec.denoisers:
        prefix = '' if len(spec.denoisers) == 1 else f'{name}.'
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        targets = sorted({key.rpartition('.lora_')[0] for key in own})
        role = role_of(spec, name)
        files.setdefault(lora_file(spec, name), {}).update(
            {
                f'{role}_lora_layers': own,
                f'{role}_lora_adapter_metadata': {**config, 'target_modules': targets},
            }
        )
    for file, layers in files.items():
        kind.save_lora_weights(str(out_dir), weight_name=file, **layers)


def kohya_state(adapted: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns an adapter of a UNet by kohya's names.

    They are `lora_unet_<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`; modules have diffusers' names with
    underscores, as kohya's scripts and ComfyUI have them for Stable Diffusion 1 and 2, and read them for XL. Raises
    ModelError for DoRA.
    """
    ends = {'lora_A.weight': 'lora_down.weight', 'lora_B.weight': 'lora_up.weight'}
    return _renamed(adapted, state, lambda module: 'lora_unet_' + module.replace('.', '_'), ends)


def comfyui_state(adapted: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns an adapter of a transformer by ComfyUI's names: `diffusion_model.<module>.lora_A.weight` and `.alpha`.

    Modules have diffusers' names, as ComfyUI has them for Qwen-Image, Z-Image and LTX. Raises ModelError for DoRA.
    """
    ends = {name: name for name in ('lora_A.weight', 'lora_B.weight')}
    return _renamed(adapted, state, lambda module: f'diffusion_model.{module}', ends)


def _renamed(
    adapted: PeftModel, state: Mapping[str, Tensor] | None, module_name: Any, ends: Mapping[str, str]
) -> dict[str, Tensor]:
    config = adapted.peft_config[ADAPTER]
    if config.use_dora:
        raise ModelError('lora_cfgs.use_dora: these names are those of plain adapters.')
    if type(adapted.get_base_model()) is Conditioned:
        raise ModelError('diffusion_cfgs.train_text_encoder: these names are those of a denoiser alone.')
    alpha = config.lora_alpha * (math.sqrt(config.r) if config.use_rslora else 1)
    found: dict[str, Tensor] = {}
    for name, tensor in lora_state(adapted, state).items():
        module, _, end = name.rpartition('.lora_')
        found[f'{module_name(module)}.{ends["lora_" + end]}'] = tensor
        found[f'{module_name(module)}.alpha'] = torch.tensor(float(alpha))
    return found


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
