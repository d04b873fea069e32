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
        'vae_encode_batch_size': 'each medium goes through the autoencoder by itself, once, before training',
        'num_mel_bins': 'the vocoder of the checkpoint says how many',
        'mel_first': 'spectrograms lie as the autoencoder of the checkpoint takes them',
    }
)
"""Keys without which a run here computes the same, by why."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        'train_batch_size': 'train_cfgs.per_device_train_batch_size',
        'model_version': 'action_cfgs.model_version',
        'freeze_audio_proj': 'train_cfgs.freeze_mm_proj',
        'freeze_vision_proj': 'train_cfgs.freeze_mm_proj',
    }
)
"""Keys that have another name here."""

DENOISING = frozenset({'text_to_image', 'text_to_audio', 'text_to_video'})
"""Pairs for which align-anything trains pipelines, with the keys below."""

RENAMED_DENOISING: Mapping[str, str] = MappingProxyType(
    {
        'lora_unet': 'lora_cfgs.use_lora',
        # A U-Net that is frozen without adapters trains nothing.
        'freeze_unet': 'lora_cfgs.use_lora',
        'resolution': 'diffusion_cfgs.resolution',
        'sample_frames': 'data_cfgs.num_frames',
        'max_frames': 'data_cfgs.max_audio_seconds',
    }
)

FRAMES_PER_SECOND = 100
"""Of spectrograms, which `max_frames` counts."""

ONLY: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        'clips_per_audio': (1, 'a row is one clip'),
        'loss': ('action', 'the pair says what is trained'),
        'model_architecture': ('EarlyFusionCnnTransformer', 'the checkpoint says what it is'),
        'do_resize': (True, 'clips are brought to one size, with aspect_buckets to one of several'),
    }
)
"""Keys that can be left out at one value and obeyed at no other, by why."""

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
        name: what to read it as, `group.key`, an empty text to leave it out.
        value: what that key gets.
        note: what to tell of that.
        refusal: why the file cannot be used with it, else an empty text.
    """

    name: str = ''
    value: Any = None
    note: str = ''
    refusal: str = ''


def judge(pair: str, group: str, key: str, value: Any) -> Verdict | None:
    """Returns what becomes of an unknown key of a settings file, None for one that align-anything has not either."""
    written = f'{group}.{key}' if group else key
    renamed = RENAMED | RENAMED_DENOISING if pair in DENOISING else RENAMED
    if key in renamed:
        name = renamed[key]
        read = value / FRAMES_PER_SECOND if key == 'max_frames' and isinstance(value, (int, float)) else value
        return Verdict(name, read, f'{written} is read as {name}')
    if key == 'input_sensors':
        return Verdict(
            'data_cfgs.train_template_kwargs', {key: value}, f'{written} is an option of the template: {key}'
        )
    if key in LEFT_OUT:
        return Verdict(note=f'{written} is left out: {LEFT_OUT[key]}')
    if value is None:
        return Verdict(note=f'{written} is null and no key of this run; it is left out')
    if key in ONLY and value == ONLY[key][0]:
        return Verdict(note=f'{written} is left out: {ONLY[key][1]}')
    refused = REFUSED | {name: why for name, (_, why) in ONLY.items()}
    if key in refused:
        return Verdict(refusal=f"'{written}' cannot be obeyed: {refused[key]}")
    return None
