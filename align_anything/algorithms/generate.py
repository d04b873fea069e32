"""Generation with a checkpoint: nothing is trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field, PositiveInt

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.configs.effects import Effect, Effects, never
from align_anything.configs.environment import EnvironmentCfgs
from align_anything.configs.generation import JUDGED, GenerationModelCfgs, GenerationRunCfgs
from align_anything.configs.online import RewardCfgs
from align_anything.configs.schema import RunCfgs

MEDIA = (
    *('image_folder', 'video_folder', 'audio_folder', 'allow_urls', 'media_cache_mb', 'audio_in_video'),
    *('num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels', 'max_video_pixels'),
    *('max_audio_seconds', 'long_audio'),
)
ROWS = (
    *(f'train_{key}' for key in ('datasets', 'template', 'template_kwargs', 'name', 'split', 'size')),
    *('train_data_files', 'train_optional_args', 'num_workers', 'max_skipped_ratio'),
)
OBEYED = {
    'train_cfgs': ('seed', 'bf16', 'fp16'),
    'data_cfgs': MEDIA,
    'model_cfgs': tuple(
        key
        for key in GenerationModelCfgs.model_fields
        if key not in ('compose', 'feature_cache_dir', 'eval_guidance_scale', 'eval_temperature')
        and not key.startswith(('reward_model_', 'remote_rm_'))
    ),
    'diffusion_cfgs': (
        *('resolution', 'max_sequence_length', 'embedded_guidance', 'lora_weights', 'prepared_dir', 'rollout_steps'),
    ),
    'vllm_cfgs': tuple(
        f'vllm_{key}'
        for key in (
            *('num_engines', 'server_urls', 'server_timeout', 'server_transfer', 'tensor_parallel_size'),
            *('enable_prefix_caching', 'enforce_eager', 'gpu_memory_utilization', 'max_model_len'),
        )
    ),
    'logger_cfgs': ('cache_dir', 'output_dir'),
    'action_cfgs': ('action_dataset', 'action_executed'),
}
"""The settings that mean something wherever a checkpoint generates, by group."""
JUDGING = {
    'train_cfgs': ('ds_cfgs', 'per_device_eval_batch_size'),
    'model_cfgs': tuple(
        key for key in GenerationModelCfgs.model_fields if key.startswith(('reward_model_', 'remote_rm_'))
    ),
    'reward_cfgs': tuple(key for key in RewardCfgs.model_fields if key != 'reward_aggregation'),
}
"""Those of what scores responses."""
ANSWERING = {
    'train_cfgs': ('resume', 'num_generations', 'per_device_prompt_batch_size'),
    'data_cfgs': ROWS,
    'logger_cfgs': ('overwrite_output_dir',),
}
"""Those of what goes through the prompts of data."""
ACTING = {
    'environment_cfgs': tuple(key for key in EnvironmentCfgs.model_fields if key not in ('credit', 'on_limit')),
    'action_cfgs': ('action_executed',),
}
"""Those of an environment that responses are episodes in."""
SCORERS = (*('reward_cfgs.reward_functions', 'model_cfgs.reward_model_name_or_path', 'model_cfgs.remote_rm_url'),)
"""Those that name what does."""


def obeyed(*groups: dict[str, tuple[str, ...]]) -> frozenset[str]:
    """Returns the settings `group.key` of several such tables."""
    named = {f'{group}.{key}' for table in groups for group, keys in table.items() for key in keys}
    return frozenset({*named, 'vllm_cfgs.use_vllm'})


class Generating(Algorithm):
    """Base of whatever opens a checkpoint to generate with it, see `trainers/runs/generator.py`.

    A class that obeys more settings says so in its `takes_effect`, as `Generate` does. `num_generations` and
    `per_device_prompt_batch_size` are what those of the online algorithms are.
    """

    name: ClassVar[str] = 'generate'
    task: ClassVar[str] = 'prompt'
    trains: ClassVar[tuple[str, ...]] = ()
    generates: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False
    run_cfgs: ClassVar[type[RunCfgs]] = GenerationRunCfgs
    weighed_kinds: ClassVar[Collection[str]] = ()
    takes_effect: ClassVar[Effects] = {
        '*.*': never('nothing is trained here, and nothing reads it; remove it.', spares=obeyed(OBEYED))
    }


@ALGORITHMS.register('generate')
class Generate(Generating):
    """Answers the prompts of the data, and scores, chooses and pairs what it answers where that is asked for."""

    reads_rows: ClassVar[bool] = True
    reads_afterwards: ClassVar[tuple[str, ...]] = ()
    """Fields of a derived class that say what is done with the answers: a run that goes on may have others."""
    takes_effect: ClassVar[Effects] = {
        '*.*': never(
            'generate trains nothing and does not read it; remove it.',
            spares=obeyed(OBEYED, JUDGING, ANSWERING, ACTING, {'train_cfgs': ('make_pairs',)}),
        ),
        **{f'train_cfgs.{key}': JUDGED for key in JUDGING['train_cfgs']},
        'train_cfgs.make_pairs': (
            Effect(
                lambda facts: facts.algorithm.num_generations > 1,
                'it means nothing with one response to a prompt; give num_generations of 2 or more, or leave it out.',
                by=('train_cfgs.num_generations',),
            ),
            Effect(
                lambda facts: any(facts.value(path) for path in SCORERS),
                'it means nothing where nothing scores responses; give reward_functions, reward_model_name_or_path or '
                'remote_rm_url, or leave it out.',
                by=SCORERS,
            ),
            Effect(
                lambda facts: facts.value('environment_cfgs.environment') is None,
                'episodes are no rows of the template Preference; leave it out.',
                by=('environment_cfgs.environment',),
            ),
        ),
    }

    num_generations: PositiveInt = Field(1, description='Responses that are sampled for each prompt.')
    per_device_prompt_batch_size: PositiveInt = Field(
        16,
        description='Prompts of each device between two writings of generations.jsonl: a run that is killed does at '
        'most so many again.',
    )
    make_pairs: bool = Field(
        False,
        description='Writes pairs.jsonl: of each prompt the response with the highest and that with the lowest score, '
        'as the template Preference reads them. It needs num_generations above 1, and a reward.',
    )
