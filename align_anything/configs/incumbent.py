"""Keys that YAML files of align-anything have and this package has not: what becomes of them in a settings file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_NO_CRITIC = 'this algorithm has no critic'
_SUBSET = 'align-anything never reads it; the configuration of a dataset is {role}_name'

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        'special_tokens': 'align-anything never reads it',
        'load_multi_datasets': 'several datasets are a list in train_datasets',
        **{f'{role}_subset': _SUBSET.format(role=role) for role in ('train', 'eval', 'ptx')},
        'regularization': 'only reward and cost models read it',
        'kl_steps': 'the divergence is estimated in every optimizer step, over its own rows',
        'per_device_kl_batch_size': 'the divergence is estimated in every optimizer step, over its own rows',
        **{
            f'critic_{key}': _NO_CRITIC
            for key in ('lr', 'lr_scheduler_type', 'lr_warmup_ratio', 'weight_decay', 'gradient_checkpointing')
        },
        'clip_range_value': _NO_CRITIC,
        'gae_lambda': _NO_CRITIC,
        'reward_critic_model_name_or_path': _NO_CRITIC,
        'log_video_interval': 'align-anything never reads it',
        'log_video_interval_val': 'align-anything never reads it',
    }
)
"""Keys without which a run here computes the same, by why."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        'train_batch_size': 'per_device_train_batch_size',
        'freeze_audio_proj': 'freeze_mm_proj',
        'freeze_vision_proj': 'freeze_mm_proj',
    }
)
"""Keys that have another name here."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        'processor_name_or_path': 'the processor is that of the checkpoint; change its options with processor_kwargs',
        'revision': 'a hub name stands for its main revision; download the other one and name its folder',
        'variant': 'the weights are read in the precision of the run; leave it out',
        'freeze_unet': 'this run has no U-Net',
        'lora_unet': 'this run has no U-Net',
    }
)
"""Keys that would change what is computed and that cannot be obeyed, by why."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a key that this run does not have.

    Attributes:
        name: what to read it as, an empty text to leave it out.
        note: what to tell of that.
        refusal: why the file cannot be used with it, else an empty text.
    """

    name: str = ''
    note: str = ''
    refusal: str = ''


def judge(group: str, key: str, value: Any) -> Verdict | None:
    """Returns what becomes of an unknown key of a settings file, None for one that align-anything has not either."""
    written = f'{group}.{key}' if group else key
    if key in RENAMED:
        name = RENAMED[key]
        return Verdict(name=name, note=f'{written} is read as {name}')
    if key in LEFT_OUT:
        return Verdict(note=f'{written} is left out: {LEFT_OUT[key]}')
    if value is None:
        return Verdict(note=f'{written} is null and no key of this run; it is left out')
    if key in REFUSED:
        return Verdict(refusal=f"'{written}' cannot be obeyed: {REFUSED[key]}")
    return None
