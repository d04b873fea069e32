"""The DeepSpeed files: ZeRO stage, offload and communication. All else comes from the settings of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    'bfloat16': 'train_cfgs.bf16',
    'fp16': 'train_cfgs.fp16',
    'torch_autocast': 'train_cfgs.bf16 and train_cfgs.fp16',
    'gradient_allreduce_op': 'the loss, a mean over the samples of all devices,',
    'optimizer': 'train_cfgs.optimizer, learning_rate, weight_decay, adam_betas and adam_epsilon',
    'scheduler': 'train_cfgs.lr_scheduler_type and lr_warmup_ratio',
}

_READ_BY_DEEPSPEED = frozenset(
    """
    activation_checkpointing aio amp autotuning checkpoint comet communication_data_type comms_logger compile
    compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    disable_allgather disable_python_gc dump_state eigenvalue elasticity flops_profiler gradient_predivide_factor
    graph_harvesting hybrid_engine memory_breakdown monitor_config nebula pipeline prescale_gradients
    progressive_layer_drop quantize_training seq_parallel_communication_data_type sequence_parallel_size
    sparse_attention sparse_gradients steps_per_print tensor_parallel tensorboard timers
    use_data_before_expert_parallelism wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
    """.split()
)
"""Further keys of DeepSpeed itself, which passes over all others."""

OFFLOAD_DEVICES = ('none', 'cpu', 'nvme')
_ADAMW = (('type', 'AdamW'), ('type', 'Adam'))


def deepspeed_file_names() -> list[str]:
    """Returns the names of the files that ship with the package."""
    return sorted(path.name for path in DEEPSPEED_FOLDER.glob('*.json'))


def load_deepspeed_config(name_or_path: str) -> dict[str, Any]:
    """Returns the content of a DeepSpeed file: one that ships, by name, or any file, by path.

    Keys that the run's settings decide (batch sizes, precision, optimizer, schedule, clipping) may be there only as
    `"auto"`, null or switched off, and are left out of the result; what else a section of fp16 says is kept. `"auto"`
    and null anywhere else are DeepSpeed's default, and left out too. Raises SettingsError for a missing or broken file,
    for such a key with a value, since two settings would then claim to decide it, and for a ZeRO stage or an offload
    that the file does not decide, since nothing else does. A key that is nearly one of DeepSpeed's is one
    misspelt, which DeepSpeed would pass over: an error too.
    """
    path, content = _read(name_or_path)
    problems = [
        f'the DeepSpeed file {path} sets \'{key}\', which {source} decides. Remove it there, or write "auto".'
        for key, source in _DECIDED_BY_SETTINGS.items()
        if not _is_left_open(key, content.get(key))
    ]
    problems += [
        f"the DeepSpeed file {path} has a key '{key}', which nothing reads.{hint}"
        for key in sorted(content.keys() - _DECIDED_BY_SETTINGS.keys() - _READ_BY_DEEPSPEED)
        if (hint := nearest(key, sorted(_DECIDED_BY_SETTINGS.keys() | _READ_BY_DEEPSPEED), cutoff=0.85))
    ]
    problems += [f'the DeepSpeed file {path}: {problem}.' for problem in _undecided(content.get('zero_optimization'))]
    if problems:
        raise SettingsError(problems)
    kept = {key: value for key, value in content.items() if key not in _DECIDED_BY_SETTINGS}
    return _without_auto(kept | {key: content[key] for key in ('fp16',) if _tunes(content.get(key))})


def switched_off(name_or_path: str) -> list[str]:
    """Returns which of `bf16` and `fp16` a file switches off. Raises SettingsError for a missing or broken file."""
    _, content = _read(name_or_path)
    names = {'bf16': 'bf16', 'bfloat16': 'bf16', 'fp16': 'fp16'}
    sections = {name: content.get(key) for key, name in names.items() if key in content}
    return [name for name, section in sections.items() if isinstance(section, dict) and section.get('enabled') is False]


def left_to_settings(name_or_path: str) -> list[str]:
    """Says what a file names that the settings of the run decide in its place, a sentence each."""
    path, content = _read(name_or_path)
    return [
        f"{path}: the {section} '{content[section]['type']}' is left to {_DECIDED_BY_SETTINGS[section]}."
        for section in ('optimizer', 'scheduler')
        if isinstance(content.get(section), dict) and content[section].get('type', 'auto') != 'auto'
    ]


def _read(name_or_path: str) -> tuple[Path, dict[str, Any]]:
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
    return path, content


def _is_left_open(key: str, value: Any) -> bool:
    """Whether the file leaves a key to the settings of the run."""
    if not isinstance(value, dict):
        return value in (None, 'auto') or (key, value) == ('gradient_allreduce_op', 'mean')
    if key in ('bf16', 'bfloat16', 'fp16', 'torch_autocast'):
        return value.get('enabled', 'auto') in (None, 'auto', False)
    if key == 'optimizer':
        # Every optimizer here is AdamW, and so is DeepSpeed's Adam unless it is told otherwise.
        value = {name: item for name, item in value.items() if (name, item) not in _ADAMW}
    if key == 'scheduler':
        value = {name: item for name, item in value.items() if name != 'type'}
    return all(_is_left_open('', item) for item in value.values())


def _undecided(section: Any) -> Iterator[str]:
    """Says what of stage and offload a section of ZeRO leaves open, or asks for in vain."""
    if section is None:
        return
    if not isinstance(section, dict):
        yield f'zero_optimization is {json.dumps(section)}, but must be an object, such as {{"stage": 2}}'
        return
    stage = section.get('stage', 0)
    if type(stage) is not int or stage not in range(4):
        yield f'the ZeRO stage is {json.dumps(stage)}, which no setting decides; write 0, 1, 2 or 3 there'
        return
    for key, least in (('offload_optimizer', 1), ('offload_param', 3)):
        offload = section.get(key)
        device = offload.get('device', 'none') if isinstance(offload, dict) else offload
        if device not in (None, *OFFLOAD_DEVICES):
            yield f'the device of {key} is {json.dumps(device)}; write one of: {", ".join(OFFLOAD_DEVICES)}'
        elif device not in (None, 'none') and stage < least:
            yield f'{key} has no effect under ZeRO stage {stage}; it needs stage {least}{"" if least == 3 else " to 3"}'


def _tunes(section: Any) -> bool:
    return isinstance(section, dict) and section.get('enabled') is not False and len(section) > 1


def _without_auto(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_auto(item) for key, item in value.items() if item not in (None, 'auto')}
