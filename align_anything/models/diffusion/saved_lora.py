"""Saved adapters of pipelines, of this package or of diffusers, to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.files import trained_model_in
from align_anything.models.adapter import MUST_AGREE, Adapter, check_plain, differences, put_weights
from align_anything.models.diffusion.checkpoint import INDEX, LORA_FILE
from align_anything.models.diffusion.lora import PEFT_PREFIX, lora_file, role_of

if TYPE_CHECKING:
    from peft import PeftModel

    from align_anything.configs.schema import LoraCfgs
    from align_anything.models.diffusion.spec import DiffusionSpec

METADATA = 'lora_adapter_metadata'
BASE = 'base_model_name_or_path'
ADVICE = 'Name the pipeline that it was trained on, and set lora_cfgs.target_modules as in its training.'


def is_lora_folder(source: str | Path) -> bool:
    """Whether a folder, or the output folder of a run, holds the adapter of a pipeline and no pipeline."""
    folder = trained_model_in(source) or Path(source)
    return (folder / LORA_FILE).is_file() and not (folder / INDEX).is_file()


def base_of(source: str | Path) -> str:
    """Returns the pipeline that an adapter was trained on. Raises ModelError where it is not recorded, or not there."""
    folder = trained_model_in(source) or Path(source)
    base = recorded_base(folder)
    if base is None:
        raise ModelError(
            f'{folder / LORA_FILE} does not say which pipeline the adapter was trained on: name that as '
            f'model_cfgs.model_name_or_path, and {folder} as diffusion_cfgs.lora_weights.'
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise ModelError(
            f'the adapter in {folder} was trained on {base}, which does not exist: name where it is as '
            f'model_cfgs.model_name_or_path, and {folder} as diffusion_cfgs.lora_weights.'
        )
    return base


def recorded_base(folder: Path) -> str | None:
    """Returns the pipeline that the adapter in `folder` names as its own; None where it names none, or several."""
    recorded = {value for key, value in _metadata(folder / LORA_FILE).items() if key.endswith(f'.{BASE}') and value}
    return recorded.pop() if len(recorded) == 1 else None


def with_base(file: Path, base: str) -> bytes:
    """Returns the content of the file of an adapter, with another name of its pipeline."""
    from safetensors.torch import load_file, save

    told = {key: base if key.endswith(f'.{BASE}') else value for key, value in _metadata(file).items()}
    return save(load_file(file), {'format': 'pt', METADATA: json.dumps(told, indent=2, sort_keys=True)})


def check_saved_lora(source: str | Path, spec: DiffusionSpec, cfgs: LoraCfgs) -> None:
    """Raises ModelError for an adapter that cannot be trained on, SettingsError where `cfgs` are not those of it."""
    for name in spec.denoisers:
        adapter, _ = stored_lora(source, spec, name)
        check_plain(adapter)
        problems = differences(adapter, cfgs)
        if problems:
            raise SettingsError(problems)


def load_saved_lora(adapted: PeftModel, source: str | Path, spec: DiffusionSpec) -> None:
    """Gives the adapters of a denoiser the saved weights; on the meta device it only checks that they fit.

    Raises ModelError where names or shapes differ: for an adapter of another pipeline, or with other targets.
    """
    stored: dict[str, Tensor] = {}
    for name in spec.denoisers:
        adapter, weights = stored_lora(source, spec, name)
        prefix = PEFT_PREFIX if len(spec.denoisers) == 1 else f'{PEFT_PREFIX}{name}.'
        stored |= {f'{prefix}{key}': tensor for key, tensor in weights.items()}
    put_weights(adapted, stored, adapter.folder, ADVICE)


def put_saved_lora(denoiser: nn.Module, source: str | Path, spec: DiffusionSpec) -> PeftModel:
    """Puts a saved adapter onto a denoiser, frozen, by what its file says of it.

    Raises ModelError for an adapter of another pipeline, or of another kind.
    """
    from peft import LoraConfig, get_peft_model

    read = {name: stored_lora(source, spec, name) for name in spec.denoisers}
    targets = []
    for name, (adapter, weights) in read.items():
        check_plain(adapter)
        prefix = '' if len(spec.denoisers) == 1 else f'{name}.'
        targets += sorted({f'{prefix}{key.rpartition(".lora_")[0]}' for key in weights if '.lora_' in key})
    settings = [adapter.settings for adapter, _ in read.values()]
    own = {key: {one.get(key) for one in settings} for key in MUST_AGREE}
    different = [key for key, values in own.items() if len(values) > 1]
    if different:
        raise ModelError(f'the components of the adapter in {source} do not have one {different[0]}.')
    config = LoraConfig(
        **{key: values.pop() for key, values in own.items()}, target_modules=targets, bias='none', inference_mode=True
    )
    try:
        adapted = get_peft_model(denoiser, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f'the adapter in {source} does not fit a {spec.model_type}: {error} {ADVICE}') from error
    load_saved_lora(adapted, source, spec)
    return adapted.requires_grad_(False)


def trains_text(source: str | Path) -> bool:
    """Whether a saved adapter adapts text encoders too."""
    return any(role.startswith('text_encoder') for role in roles_in(source))


def roles_in(source: str | Path) -> set[str]:
    """Returns what the file of an adapter calls the components that it has weights for, such as `transformer`."""
    from safetensors import SafetensorError, safe_open

    file = (trained_model_in(source) or Path(source)) / LORA_FILE
    try:
        with safe_open(file, 'pt') as opened:
            return {name.partition('.')[0] for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f'{file}, the adapter, cannot be read: {error}') from error


def stored_lora(source: str | Path, spec: DiffusionSpec, name: str) -> tuple[Adapter, dict[str, Tensor]]:
    """Returns the settings of a component's adapter, and its weights by the names of `lora_state`.

    Raises ModelError where they cannot be read, or are those of other components.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = trained_model_in(source) or Path(source)
    file, prefix = folder / lora_file(spec, name), f'{role_of(spec, name)}.'
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f'{file}, the adapter to train on, cannot be read: {error}') from error
    roles = {role_of(spec, one) for one in spec.denoisers}
    strange = sorted({key.partition('.')[0] for key in stored} - roles)
    weights = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    if strange or not weights:
        held = ', '.join(sorted({key.partition('.')[0] for key in stored})) or 'nothing'
        if strange and {*strange} <= {*spec.trainable_text}:
            advice = 'Set diffusion_cfgs.train_text_encoder.'
        else:
            advice = 'Leave diffusion_cfgs.train_text_encoder out.' if spec.trains_text and not strange else ADVICE
        raise ModelError(
            f'{file} holds weights of {held}, and {" and ".join(sorted(roles))} of a {spec.model_type} is what this '
            f'run trains. {advice}'
        )
    if not any('.lora_A.' in key for key in weights):
        # As diffusers' scripts write them.
        weights = _in_names_of_peft(weights, name in spec.trainable_text)
    ranks = {tensor.shape[0] for key, tensor in weights.items() if '.lora_A.' in key}
    if len(ranks) != 1:
        raise ModelError(f'{file} has no rank that is the same for all layers, but {sorted(ranks)}.')
    (rank,) = ranks
    # What diffusers takes it for where nothing is recorded.
    plain = {'r': rank, 'lora_alpha': rank, 'use_rslora': False}
    plain['use_dora'] = any('lora_magnitude' in key for key in weights)
    own = {key.removeprefix(prefix): value for key, value in _metadata(file).items() if key.startswith(prefix)}
    return Adapter(folder, {**plain, **own}), weights


def _in_names_of_peft(weights: dict[str, Tensor], of_text: bool) -> dict[str, Tensor]:
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    try:
        return convert_state_dict_to_peft(weights) if of_text else convert_unet_state_dict_to_peft(weights)
    except ValueError:
        # Of names that it does not know, which do not fit then.
        return weights


def _metadata(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, 'pt') as opened:
            return json.loads((opened.metadata() or {}).get(METADATA, '{}'))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f'{file}, the adapter to train on, cannot be read: {error}') from error
