"""The DeepSpeed files: ZeRO stage, offload and communication. All else comes from the settings of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest

DEEPSPEED_FOLDER = Path(__file__).parent / 'deepspeed'

_DECIDED_BY_SETTINGS = {
    'train_batch_size': 'train_cfgs.per_device_train_batch_size and train_cfgs.gradient_accumulation_steps',
    'train_micro_batch_size_per_gpu': 'train_cfgs.per_device_train_batch_size',
    'gradient_accumulation_steps': 'train_cfgs.gradient_accumulation_steps',
    'gradient_clipping': 'train_cfgs.max_grad_norm',
    'bf16': 'train_cfgs.bf16',
    'fp16': 'train_cfgs.fp16',
    'optimizer': 'train_cfgs.optimizer, learning_rate, weight_decay, adam_betas and adam_epsilon',
    'scheduler': 'train_cfgs.lr_scheduler_type and lr_warmup_ratio',
}


def deepspeed_file_names() -> list[str]:
    """Returns the names of the files that ship with the package."""
    return sorted(path.name for path in DEEPSPEED_FOLDER.glob('*.json'))


def load_deepspeed_config(name_or_path: str) -> dict[str, Any]:
    """Returns the content of a DeepSpeed file: one that ships, by name, or any file, by path.

    Keys that the run's settings decide (batch sizes, precision, optimizer, schedule, clipping) may be there only as
    `"auto"` or null, and are left out of the result. Raises SettingsError for a missing or broken file, and for
    such a key with a value, since two settings would then claim to decide it.
    """
    path = DEEPSPEED_FOLDER / name_or_path
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        names = deepspeed_file_names()
        raise SettingsError(
            [
                f"there is no DeepSpeed file '{name_or_path}'.{nearest(name_or_path, names)} "
                f'Give a path, or one of: {", ".join(names)}.'
            ]
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise SettingsError([f'the DeepSpeed file {path} cannot be read as JSON: {error}.']) from error
    if not isinstance(content, dict):
        raise SettingsError([f'the DeepSpeed file {path} must hold a JSON object, not {type(content).__name__}.'])
    problems = [
        f'the DeepSpeed file {path} sets \'{key}\', which {source} decides. Remove it there, or write "auto".'
        for key, source in _DECIDED_BY_SETTINGS.items()
        if not _left_open(content.get(key))
    ]
    if problems:
        raise SettingsError(problems)
    return {key: value for key, value in content.items() if key not in _DECIDED_BY_SETTINGS}


def _left_open(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_left_open(item) for item in value.values())
    return value is None or value == 'auto'
