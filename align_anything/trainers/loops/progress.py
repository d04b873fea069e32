"""Where a run stands, and what a resumed run must agree with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from align_anything.configs.actions import ActionCfgs
from align_anything.configs.diffusion import DiffusionCfgs
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.schema import BnbCfgs, RunCfgs, groups_of
from align_anything.core.distributed import world_size
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.engines.optim import EIGHT_BITS

logger = get_logger(__name__)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done; `epoch` and `step_in_epoch` say where in the data that is.
        seen: rows that were read, of which `skipped` different ones could not be used; `filtered` were not meant to.
        nonfinite: steps that changed nothing because their loss or gradient was not finite.
        empty: steps that changed nothing because there was nothing to train on.
        best: value of the metric that `save_best` names at the best evaluation so far, which was after `best_step`;
            `evaluations_since_best` were not better.
        last_evaluation: the metrics of the last evaluation.
        state: what an algorithm remembers beside its engines, as plain values.
        cursor: where the sampler begins the next step, if it must be told (`Sampler.cursor`).
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    seen: int = 0
    skipped: int = 0
    filtered: int = 0
    nonfinite: int = 0
    empty: int = 0
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    last_evaluation: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    cursor: Sequence[int] | None = None


_MUST_AGREE = {
    'train_cfgs': (
        'seed',
        'per_device_train_batch_size',
        'max_length_per_batch',
        'group_by_length',
        'gradient_accumulation_steps',
        'ds_cfgs',
        'bf16',
        'fp16',
        # The state of the optimizer brings those of the checkpoint along, so other ones would have no effect.
        *('optimizer', 'learning_rate', 'lr_groups', 'weight_decay', 'adam_betas', 'adam_epsilon'),
        'router_aux_loss_coef',
        'freeze_vision_tower',
        'freeze_audio_tower',
        'freeze_mm_proj',
        'freeze_generation',
        'freeze_language_model',
        'unfreeze_patterns',
    ),
    'data_cfgs': (
        'train_datasets',
        'train_template',
        'train_template_kwargs',
        'train_name',
        'train_split',
        'train_size',
        'train_data_files',
        'train_mixing',
        'train_weights',
        'streaming',
        'train_on',
        'drop_truncated',
        *('emitted_loss_weights', 'prompt_dropout'),
        # Which steps of an episode a row is.
        *('sliding_window', 'windows', 'init_prob_sample_last_steps', 'final_prob_sample_last_steps'),
        'reduce_action_redundancy',
        # What of a video or an audio clip the model reads.
        *('num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels', 'max_video_pixels'),
        *('audio_in_video', 'max_audio_seconds', 'long_audio'),
    ),
    'model_cfgs': ('model_name_or_path', 'model_max_length', 'chat_template', 'processor_kwargs'),
    'lora_cfgs': (
        *('use_lora', 'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'use_dora'),
        *('target_modules', 'vision_lora', 'modules_to_save'),
    ),
    'bnb_cfgs': tuple(BnbCfgs.model_fields),
    'action_cfgs': tuple(key for key in ActionCfgs.model_fields if key != 'model_version'),
    'diffusion_cfgs': tuple(
        key
        for key in DiffusionCfgs.model_fields
        if key not in ('prepared_dir', 'eval_draws', 'eval_rollout_steps') and not key.startswith('preview_')
    ),
}


# Settings of algorithms that say where something lies or is, and not what is computed.
_MAY_DIFFER = {
    *('reference_cache_dir', 'reference_ds_cfgs'),
    *('remote_rm_url', 'remote_rm_timeout', 'remote_rm_retry_times', 'remote_rm_batch_size', 'log_completions'),
    *('vllm_server_urls', 'vllm_server_timeout', 'vllm_gpu_memory_utilization', 'vllm_probe_tolerance'),
}


def identity(cfgs: RunCfgs) -> dict[str, Any]:
    """The settings without which a resumed run would not be the same run."""
    values = {
        f'{group}.{key}': value
        for group, keys in _MUST_AGREE.items()
        for key, value in getattr(cfgs, group).model_dump(mode='json', include=set(keys)).items()
    }
    common = groups_of(RunCfgs)
    for group, model in groups_of(type(cfgs)).items():
        own = set(model.model_fields) - set(common[group].model_fields if group in common else ()) - _MAY_DIFFER
        of_algorithm = getattr(cfgs, group).model_dump(mode='json', include=own)
        values |= {f'{group}.{key}': value for key, value in of_algorithm.items()}
    if cfgs.train_cfgs.engine == 'fsdp':
        values[DEEPSPEED_FILE] = FSDP
    return {**values, 'world_size': world_size()}


DEEPSPEED_FILE, FSDP = 'train_cfgs.ds_cfgs', 'none: FSDP2'
SPLIT = ('train_cfgs.per_device_train_batch_size', 'train_cfgs.gradient_accumulation_steps', 'world_size')
"""How the samples of an optimizer step are split."""


def _may_split_otherwise(cfgs: RunCfgs, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether the steps of both runs have as many samples, and hold the same ones however they are split.

    Where micro-batches are filled by tokens, or responses are generated, what a step holds depends on the ranks.
    """
    if isinstance(cfgs, OnlineRunCfgs) or cfgs.train_cfgs.max_length_per_batch is not None:
        return False
    return math.prod(ours[key] for key in SPLIT) == math.prod(theirs.get(key, 0) for key in SPLIT)


def manifest_of(progress: Progress, cfgs: RunCfgs) -> dict[str, Any]:
    """The record that stands in a checkpoint."""
    return {'progress': asdict(progress), 'identity': identity(cfgs)}


def resume_progress(manifest: dict[str, Any], cfgs: RunCfgs, where: str) -> Progress:
    """The progress of a checkpoint. Raises SettingsError listing all settings that differ from its own.

    A checkpoint of an earlier version may say nothing of a setting that all algorithms have: it is told, and taken for
    the same. What an algorithm alone has is there, or the checkpoint is another algorithm's.
    """
    ours = json.loads(json.dumps(identity(cfgs)))
    theirs = manifest['identity']
    free = SPLIT if _may_split_otherwise(cfgs, ours, theirs) else ()
    # FSDP2 reads no DeepSpeed file: the default that stands there says nothing.
    free += (DEEPSPEED_FILE,) if FSDP in (ours[DEEPSPEED_FILE], theirs.get(DEEPSPEED_FILE)) else ()
    common = {f'{group}.{key}' for group, keys in _MUST_AGREE.items() for key in keys}
    unsaid = sorted(common & ours.keys() - theirs.keys())
    if unsaid:
        logger.warning('%s does not say what these settings were; give the same as then: %s', where, ', '.join(unsaid))
    problems = []
    if ours['world_size'] != theirs['world_size'] and cfgs.train_cfgs.optimizer == EIGHT_BITS:
        problems.append(
            f'--resume: the moments of train_cfgs.optimizer: {EIGHT_BITS} are not split among other ranks: {where} is '
            f'of {theirs["world_size"]}, and there are {ours["world_size"]}.'
        )
    problems += [
        f'--resume: {key} is {ours[key]!r}, but {where} was written with {theirs.get(key)!r}.'
        for key in ours
        if ours[key] != theirs.get(key) and key not in (*free, *unsaid)
    ]
    if problems:
        raise SettingsError([*problems, '--resume: give the same values, or start afresh in another output_dir.'])
    return Progress(**manifest['progress'])


def rank_seed(seed: int, rank: int) -> int:
    """A seed for this rank's dropout, different on every rank and the same in every run."""
    return int.from_bytes(hashlib.sha256(f'{seed}/{rank}'.encode()).digest()[:4], 'big')
