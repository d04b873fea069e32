"""What can be said about a checkpoint before its weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from align_anything.core.errors import ModelError
from align_anything.core.files import read_json
from align_anything.core.registry import nearest
from align_anything.models.acting.known import register_acting
from align_anything.models.families import family_module, loading_options

ADAPTER_CONFIG = 'adapter_config.json'
PROCESSOR_FILES = ('processor_config.json', 'preprocessor_config.json')
WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')


def check_checkpoint(model_name_or_path: str | Path, trust_remote_code: bool = False) -> None:
    """Raises ModelError, saying what to do, when a folder is not a complete checkpoint.

    Looks at names and file headers only. A hub name passes as long as its configuration can be read.
    """
    config = read_config(model_name_or_path, trust_remote_code)
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        return
    _check_processor(folder, config)
    for file in _weight_files(folder):
        if file.suffix == '.safetensors':
            _open(file)


def read_config(model_name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Returns the configuration of a checkpoint, of an Omni one that of its thinker. Raises ModelError for none."""
    folder, name = Path(model_name_or_path), str(model_name_or_path)
    if folder.is_dir():
        _check_model_type(folder, trust_remote_code)
    elif folder.exists():
        raise ModelError(f'{folder} is a file; name the folder that holds config.json and the weights.')
    elif name.startswith(('.', '/', '~')) or name.count('/') > 1 or name.endswith('/'):
        raise ModelError(f'{folder} does not exist. Name a checkpoint folder or a model of the hub (owner/name).')
    try:
        if not folder.is_dir():
            model_type = PreTrainedConfig.get_config_dict(name)[0].get('model_type') or ''
            register_acting(model_type)
            family_module(model_type)
        config = AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
    except OSError as error:
        absent = '' if folder.is_dir() else f'there is no such folder here.{nearest(name, _folders_beside(folder))} '
        raise ModelError(f'the configuration of {model_name_or_path} cannot be read: {absent}{error}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'the configuration of {model_name_or_path} cannot be read: {error}') from error
    for option, value in loading_options(config.model_type).items():
        setattr(config, option, value)
    # An Omni checkpoint holds a talker, which speaks, beside the thinker, which reads and writes.
    return vars(config).get('thinker_config') or config


def _folders_beside(folder: Path) -> list[str]:
    """The checkpoint folders that `folder` may have been meant to be, as it would name them."""
    return [str(file.parent) for file in folder.parent.glob('*/config.json')]


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration takes images, videos or audio, and so needs a processor."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return True
    family = family_module(config.model_type)
    return family is not None and family.SPEC.brings_processor


def stored_keys(folder: str | Path) -> list[str]:
    """Returns the names of the weights in a checkpoint folder of safetensors files, sorted."""
    return sorted(key for file in _weight_files(Path(folder)) for key in _open(file).keys())


def stored_tensor(model_name_or_path: str | Path, name: str) -> torch.Tensor | None:
    """Returns one weight of a checkpoint (folder or hub name), or None when it is not there."""
    for file in _weight_files(model_name_or_path):
        if file.suffix == '.safetensors':
            reader = _open(file)
            if name in reader.keys():
                return reader.get_tensor(name)
        else:
            weights = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
            if name in weights:
                return weights[name]
    return None


def stored_module(folder: str | Path, module: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a module of a checkpoint folder, wherever in the model it stands, by their names in it.

    Nothing else is read. Raises ModelError where there are none.
    """
    found = {}
    for file in _weight_files(folder):
        if file.suffix == '.safetensors':
            reader = _open(file)
            names, get = reader.keys(), reader.get_tensor
        else:
            weights = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
            names, get = weights.keys(), weights.__getitem__
        for name in names:
            _, is_inside, rest = f'.{name}'.partition(f'.{module}.')
            if is_inside:
                found[rest] = get(name)
    if not found:
        raise ModelError(f'{folder} has no weights of a {module}.')
    return found


def _check_model_type(folder: Path, trust_remote_code: bool) -> None:
    from transformers import CONFIG_MAPPING

    file = folder / 'config.json'
    if not file.is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            base = read_json(folder / ADAPTER_CONFIG).get('base_model_name_or_path')
            raise ModelError(
                f'{folder} holds a LoRA adapter, not a model. Merge it first (align-anything merge {folder} OUT), '
                f'or name the model it was trained on: {base}.'
            )
        raise ModelError(f'{folder} has no config.json, so it is not a checkpoint in Hugging Face format.')
    config = read_json(file)
    model_type = config.get('model_type')
    if model_type is None:
        raise ModelError(f'{file} has no model_type, so the architecture is unknown.')
    # A family that is no part of transformers registers its type when its file is imported.
    register_acting(model_type)
    family_module(model_type)
    if model_type in CONFIG_MAPPING or (trust_remote_code and 'auto_map' in config):
        return
    if 'auto_map' in config:
        raise ModelError(f'{folder} brings code of its own; set trust_remote_code if you trust where it comes from.')
    close = nearest(model_type, list(CONFIG_MAPPING.keys()))
    raise ModelError(f"{file}: transformers does not know the model_type '{model_type}'.{close}")


def _check_processor(folder: Path, config: PreTrainedConfig) -> None:
    if is_multimodal(config) and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise ModelError(
            f'{folder} is a multimodal model ({config.model_type}) without a processor: none of '
            f'{", ".join(PROCESSOR_FILES)} is there. Copy them from the original checkpoint.'
        )


def local_folder(model_name_or_path: str | Path) -> Path:
    """Returns the folder that the weights of a checkpoint lie in; those of a hub name are downloaded.

    Raises ModelError where there are none.
    """
    folder = Path(model_name_or_path)
    return folder if folder.is_dir() else [*_weight_files(model_name_or_path)][0].parent


def _weight_files(model_name_or_path: str | Path) -> Iterator[Path]:
    """Yields the weight files of a checkpoint, of the kind that transformers would read."""
    for name in WEIGHT_FILES:
        index = find(model_name_or_path, f'{name}.index.json')
        if index is not None:
            for shard in sorted(set(read_json(index)['weight_map'].values())):
                file = find(model_name_or_path, shard)
                if file is None:
                    raise ModelError(f'{index} names {shard}, which is missing. Copy or download the checkpoint again.')
                yield file
            return
        file = find(model_name_or_path, name)
        if file is not None:
            yield file
            return
    raise ModelError(
        f'{model_name_or_path} has no weights: neither {" nor ".join(WEIGHT_FILES)} (in one file or in shards).'
    )


def find(model_name_or_path: str | Path, name: str) -> Path | None:
    """Returns the file of that name of a checkpoint, in its folder or on the hub; None where there is none."""
    folder = Path(model_name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = cached_file(str(model_name_or_path), name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework='pt')
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{file} is damaged or truncated ({error}). Copy or download it again.') from error
