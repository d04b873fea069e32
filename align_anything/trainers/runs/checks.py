"""What settings say about each other, before anything is opened: what a run cannot obey, and what its reference is."""

from __future__ import annotations

from transformers import PreTrainedConfig

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.online import Online
from align_anything.algorithms.referring import Reference, Referring
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import DEFAULT_ORIGIN, Resolved
from align_anything.configs.schema import ModelCfgs, RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import read_config
from align_anything.models.pretrained_model import positions_of
from align_anything.trainers.loops.pending import problems_of_generating_ahead
from align_anything.trainers.runs.settings import precision_of

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
    'logger_cfgs': ('output_dir', 'cache_dir'),
}
"""The settings that mean something where nothing is trained, by group."""


def check_obeyed(resolved: Resolved) -> None:
    """Raises SettingsError for settings that were given and that a run which trains nothing cannot obey."""
    problems = []
    for path, origin in resolved.origins.items():
        group, key, *inner = path.split('.')
        if origin != DEFAULT_ORIGIN and not inner and key not in OBEYED.get(group, ()):
            problems.append(
                f'{path} ({origin}): {resolved.algorithm.name} trains nothing and does not read it; remove it.'
            )
    if problems:
        raise SettingsError(problems)


def check_online(cfgs: OnlineRunCfgs, algorithm: Online) -> None:
    """Raises SettingsError for settings that an online run cannot obey."""
    train, problems = cfgs.train_cfgs, []
    size, together = train.per_device_train_batch_size, algorithm.trained_responses
    if algorithm.compares and size % together:
        problems.append(
            f'train_cfgs.per_device_train_batch_size = {size}: {algorithm.name} compares {together} responses to a '
            f'prompt, so a micro-batch must hold a multiple of {together} responses.'
        )
    unread = {
        'train_cfgs.group_by_length': train.group_by_length,
        'data_cfgs.train_on': cfgs.data_cfgs.train_on != 'all_assistant',
        'data_cfgs.sample_cache_dir': cfgs.data_cfgs.sample_cache_dir is not None,
        # Supervised rows beside the responses may be truncated, prompts never are.
        'data_cfgs.drop_truncated': cfgs.data_cfgs.drop_truncated and not algorithm.supervises,
    }
    problems += [
        f'{key}: it means nothing where responses are generated; leave it out.' for key in unread if unread[key]
    ]
    if train.early_stopping_patience is not None and train.save_best is None:
        problems.append('train_cfgs.early_stopping_patience: an evaluation has no loss here; set save_best: reward.')
    if cfgs.lora_cfgs.use_lora and cfgs.lora_cfgs.lora_dropout and algorithm.has_ratios:
        problems.append(
            f'lora_cfgs.lora_dropout = {cfgs.lora_cfgs.lora_dropout}: {algorithm.name} clips the ratio of the policy '
            'to itself at the rollout, which has no dropout: on policy it would not be 1. Leave lora_dropout out.'
        )
    problems += problems_of_generating_ahead(cfgs, algorithm)
    if problems:
        raise SettingsError(problems)


def reference_cache_of(algorithm: Algorithm) -> str | None:
    """The folder of the reference's scores; responses that are generated cannot be scored beforehand."""
    return algorithm.reference_cache_dir if algorithm.refers and not algorithm.generates else None


def check_reference(cfgs: RunCfgs, algorithm: Algorithm) -> None:
    """Raises SettingsError for what the reference cannot do, and for an algorithm without the settings of one."""
    base = Reference if algorithm.generates else Referring
    if algorithm.refers and not isinstance(algorithm, base):
        kind = f'{type(algorithm).__module__}.{type(algorithm).__qualname__}'
        raise SettingsError(
            [f'algorithm {algorithm.name}: {kind} refers, so it must derive from {base.__module__}.{base.__name__}.']
        )
    if reference_cache_of(algorithm) is not None and cfgs.data_cfgs.streaming:
        raise SettingsError(
            ['train_cfgs.reference_cache_dir: a stream cannot be scored beforehand. Set data_cfgs.streaming: False.']
        )


def without_adapter_is_reference(cfgs: RunCfgs, algorithm: Reference) -> bool:
    """Whether switching the adapter off gives the reference: not when training goes on from a trained adapter."""
    source = cfgs.model_cfgs.model_name_or_path
    same = algorithm.reference_model_name_or_path in (None, source)
    return cfgs.lora_cfgs.use_lora and same and find_adapter(source) is None


def precision_of_reference(cfgs: RunCfgs, algorithm: Reference) -> str:
    """The precision in which a reference scores."""
    return precision_of(cfgs) if algorithm.reference_dtype == 'auto' else algorithm.reference_dtype


def require_positions(config: PreTrainedConfig, source: str, length: int, setting: str) -> None:
    """Raises SettingsError when sequences of so many tokens, which `setting` asks for, are more than a model reads."""
    positions = positions_of(config)
    if positions is not None and length > positions:
        raise SettingsError([f'{setting} = {length} is more than the {positions} positions of {source}.'])


def require_reference_reads(cfgs: RunCfgs, algorithm: Algorithm, length: int) -> None:
    """Raises SettingsError for a reference that cannot read the sequences of the policy, of up to `length` tokens."""
    source = algorithm.reference_model_name_or_path if algorithm.refers else None
    if source is not None:
        adapter = find_adapter(source)
        base = source if adapter is None else adapter.require_base()
        config = read_config(base, cfgs.model_cfgs.trust_remote_code)
        require_positions(config, source, length, 'model_cfgs.model_max_length')
