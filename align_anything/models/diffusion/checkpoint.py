"""From the name of a checkpoint to the rules of its family, and to its denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.files import read_json
from align_anything.core.logging import get_logger
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing
from align_anything.models.compiling import counted_again
from align_anything.models.diffusion.families import spec_class
from align_anything.models.diffusion.library import component_class, quiet, require_diffusers
from align_anything.models.diffusion.opening import skeleton
from align_anything.models.diffusion.several import remembered

if TYPE_CHECKING:
    from align_anything.models.diffusion.spec import DiffusionSpec, Sizing

logger = get_logger(__name__)
INDEX = 'model_index.json'
LORA_FILE = 'pytorch_lora_weights.safetensors'
LISTED = 12
CONFIGURATIONS = ['*.json', '*.txt', '*.model']
"""Files of a pipeline beside its weights, in folders too."""


def is_pipeline(source: str | Path) -> bool:
    """Whether a folder, or a model of the hub, is a pipeline of diffusers: whether it has a model_index.json."""
    if Path(source).exists():
        return (Path(source) / INDEX).is_file()
    from transformers.utils import cached_file

    try:
        return cached_file(str(source), INDEX, _raise_exceptions_for_missing_entries=False) is not None
    except (OSError, ValueError):
        return False


def pipeline_folder(source: str | Path) -> Path:
    """Returns the folder of a pipeline; one of the hub is downloaded. Raises ModelError where there is none."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise ModelError(f'{folder} has no {INDEX}, so it is not a pipeline of diffusers.')
        return folder
    if folder.exists():
        raise ModelError(f'{folder} is a file; name the folder that holds {INDEX}.')
    diffusers = require_diffusers()
    try:
        return Path(diffusers.DiffusionPipeline.download(str(source)))
    except (OSError, ValueError) as error:
        raise ModelError(f'the pipeline {source} is no folder here and cannot be downloaded: {error}') from error


def configuration_folder(source: str | Path) -> Path:
    """Returns a folder with all of a pipeline but its weights; of one of the hub the rest is downloaded.

    Raises ModelError where there is none.
    """
    if Path(source).exists():
        return pipeline_folder(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(source), allow_patterns=CONFIGURATIONS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(f'the configurations of {source} cannot be downloaded: {error}') from error


def load_spec(
    source: str | Path,
    sizing: Sizing | None = None,
    draws: int = 1,
    text_length: int | None = None,
    train_text: bool = False,
) -> DiffusionSpec:
    """Returns the rules of a pipeline's family, reading model_index.json and configurations, no weights.

    `text_length` is the most tokens of a prompt that the denoiser sees; None is what the pipeline does by itself. With
    `train_text` its text encoders are trained along. Raises ModelError for a pipeline that no family serves, one that
    is incomplete, a size that it cannot have, and text encoders that are not trained.
    """
    folder = pipeline_folder(source)
    index = read_json(folder / INDEX)
    name = index.get('_class_name')
    if not isinstance(name, str):
        raise ModelError(f'{folder / INDEX} does not say which pipeline it is (_class_name).')
    kind = spec_class(name, str(folder))
    configs = {}
    for component, origin in index.items():
        if component.startswith('_') or not isinstance(origin, list) or origin[0] is None:
            continue
        if not (folder / component).is_dir():
            raise ModelError(f'{folder / INDEX} names the component {component}, but {folder / component} is missing.')
        configs[component] = _config(folder / component)
    if kind.denoiser not in configs:
        raise ModelError(f'{folder} has no {kind.denoiser}, which is what a {name} denoises with.')
    spec = kind(folder, index, configs, sizing=sizing, draws=draws, text_length=text_length)
    spec.source = str(folder.absolute()) if Path(source).is_dir() else str(source)
    if train_text:
        spec.train_text()
    return spec


def load_denoiser(spec: DiffusionSpec, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Loads the denoiser of a pipeline and nothing else, in training mode, its weights in `dtype`.

    Of a pipeline with two experts it is both in one. diffusers knows no partitioning while loading: under ZeRO-3 every
    rank holds it whole in the CPU's memory until the engine partitions it. Raises ModelError for weights that are
    missing, or not those of the configuration.
    """
    return spec.joined({name: _load(spec, name, dtype) for name in spec.denoisers}).train()


def denoiser_skeleton(spec: DiffusionSpec) -> nn.Module:
    """Returns the denoiser without storage, on the meta device."""
    with torch.device('meta'):
        return spec.joined({name: skeleton(spec.index, spec.configs, spec.folder, name) for name in spec.denoisers})


def denoiser_class(spec: DiffusionSpec, name: str) -> type[Any]:
    """Returns the class of a component. Raises ModelError where diffusers has none of that name."""
    return component_class(spec.index[name], spec.folder)


def denoiser_parts(spec: DiffusionSpec, denoiser: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Returns the component of each name in a denoiser, with what its parameters' names begin with there."""
    if len(spec.denoisers) == 1:
        return {spec.denoiser: ('', denoiser)}
    return {name: (f'{name}.', denoiser.get_submodule(name)) for name in spec.denoisers}


def _load(spec: DiffusionSpec, name: str, dtype: torch.dtype) -> nn.Module:
    kind, folder = denoiser_class(spec, name), spec.folder / name
    try:
        with quiet():
            model, report = kind.from_pretrained(
                str(folder),
                dtype=dtype,
                output_loading_info=True,
                # Mismatches are refused below, with the missing keys beside them.
                ignore_mismatched_sizes=True,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f'{folder} does not load as {kind.__name__}: {error}') from error
    missing, unused = sorted(report['missing_keys']), sorted(report['unexpected_keys'])
    mismatched = [f'{key} {tuple(stored)} -> {tuple(wanted)}' for key, stored, wanted in report['mismatched_keys']]
    if missing or mismatched:
        raise ModelError(
            f'the weights in {folder} are not those of {kind.__name__}. Missing: {_listed(missing)}. Other shapes: '
            f'{_listed(mismatched)}. Not used: {_listed(unused)}. Check that config.json and the weights belong to '
            'each other.'
        )
    if unused:
        logger.warning('%s holds weights that %s has no parameter for: %s', folder, kind.__name__, _listed(unused))
    # Some keep layers in float32 whatever they are asked for; an engine has one type.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def enable_gradient_checkpointing(denoiser: nn.Module, spec: DiffusionSpec, how: Checkpointing = ALL_LAYERS) -> None:
    """Makes the backward pass compute each block anew. Raises ModelError for a family that cannot, with the reason."""
    if how.every > 1:
        raise ModelError(
            'train_cfgs.gradient_checkpointing_every_n_layers: diffusers computes all blocks of a denoiser again, or '
            'none. Leave it out.'
        )
    reason = spec.no_checkpointing
    if not reason:
        try:
            denoiser.enable_gradient_checkpointing(remembered(counted_again(how.function)))
            return
        except ValueError as error:
            reason = str(error)
    raise ModelError(f'train_cfgs.gradient_checkpointing: {spec.model_type} trains without. {reason}')


def _config(folder: Path) -> dict[str, Any]:
    for name in ('config.json', 'scheduler_config.json', 'preprocessor_config.json', 'tokenizer_config.json'):
        if (folder / name).is_file():
            return read_json(folder / name)
    raise ModelError(f'{folder} has no configuration. Copy or download the checkpoint again.')


def _listed(names: list[str]) -> str:
    if not names:
        return 'none'
    rest = len(names) - LISTED
    return ', '.join(names[:LISTED]) + (f' and {rest} more' if rest > 0 else '')
