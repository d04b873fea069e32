"""Scoring with a trained reward or cost model: nothing is trained."""

from __future__ import annotations

from typing import ClassVar

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.configs.effects import Effects, never
from align_anything.configs.schema import ModelCfgs

OBEYED = {
    'train_cfgs': ('ds_cfgs', 'per_device_eval_batch_size', 'bf16', 'fp16', 'layout'),
    'data_cfgs': (
        *(f'train_{key}' for key in ('datasets', 'template', 'template_kwargs', 'name', 'split', 'size')),
        *('train_data_files', 'train_optional_args', 'num_workers', 'sample_cache_dir', 'max_skipped_ratio'),
        'drop_truncated',
        *('image_folder', 'video_folder', 'audio_folder', 'allow_urls', 'media_cache_mb', 'audio_in_video'),
        *('num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels', 'max_video_pixels'),
        *('max_audio_seconds', 'long_audio'),
    ),
    'model_cfgs': tuple(ModelCfgs.model_fields),
    'logger_cfgs': ('output_dir', 'overwrite_output_dir', 'cache_dir'),
}
"""The settings that mean something where nothing is trained, by group."""


@ALGORITHMS.register('rm_score')
class RMScore(Algorithm):
    """Gives every answer of the data its score."""

    name: ClassVar[str] = 'rm_score'
    task: ClassVar[str] = 'answers'
    scores: ClassVar[str] = 'responses'
    trains: ClassVar[tuple[str, ...]] = ()
    takes_effect: ClassVar[Effects] = {
        '*.*': never(
            'rm_score trains nothing and does not read it; remove it.',
            spares=frozenset(f'{group}.{key}' for group, keys in OBEYED.items() for key in keys),
        ),
        'train_cfgs.per_device_eval_batch_size': (),
    }
