"""Other names of keys: older ones, those that other libraries use, and names that mean a key without being one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Alias:
    """Another name of a key, and where its values are others, their type and what turns them into those of the key."""

    group: str
    key: str
    meaning: str = 'the same'
    annotation: Any = None
    convert: Callable[[Any], Any] | None = None


def convert_load_checkpoint(value: Any) -> str | None:
    """Returns the value of `resume` that the older key `load_checkpoint` stands for."""
    if value is True:
        return 'auto'
    return None if value is False else value


def convert_report_to(value: Any) -> Any:
    """Returns the one tracker that a list of trackers names; a longer list is left for the schema to refuse."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def convert_targets(value: Any) -> Any:
    """Returns `auto` for `all`, every linear layer of the language model, and the names in a text with commas."""
    if value == 'all':
        return 'auto'
    return value.split(',') if isinstance(value, str) and ',' in value else value


def convert_dataset_version(value: Any) -> Any:
    """Returns the template of a kind of recorded episodes."""
    return {'CHORES': 'Chores'}.get(value, value)


def convert_metric(value: Any) -> Any:
    """Returns the name of a metric without the prefix that it has in logs."""
    return value.removeprefix('eval_').removeprefix('eval/') if isinstance(value, str) else value


_RESUME = Alias(
    'train_cfgs', 'resume', 'True is `resume: auto`, False is null', bool | str | None, convert_load_checkpoint
)
_TARGETS = Alias('lora_cfgs', 'target_modules', '`all` is `target_modules: auto`', str | list[str], convert_targets)

_PLAIN = {
    'train_cfgs': {
        **{f'actor_{key}': key for key in ('weight_decay', 'lr_scheduler_type', 'lr_warmup_ratio')},
        'actor_gradient_checkpointing': 'gradient_checkpointing',
        'actor_lr': 'learning_rate',
        'n_samples_per_prompt': 'num_generations',
        'num_train_epochs': 'epochs',
        'per_device_batch_size': 'per_device_train_batch_size',
        'deepspeed': 'ds_cfgs',
        'warmup_ratio': 'lr_warmup_ratio',
        'optim': 'optimizer',
        'evaluation_strategy': 'eval_strategy',
        'eval_steps': 'eval_interval',
        'val_strategy': 'eval_strategy',
        'val_interval': 'eval_interval',
        'per_device_val_batch_size': 'per_device_eval_batch_size',
        'freeze_multi_modal_projector': 'freeze_mm_proj',
        'ref_model': 'reference_model_name_or_path',
        'rloo_k': 'num_generations',
        'beta_coeff': 'scale_coeff',
    },
    'data_cfgs': {
        'dataset_name': 'train_datasets',
        'dataset_config': 'train_name',
        'dataset_config_name': 'train_name',
        'dataset_train_split': 'train_split',
        'dataset_test_split': 'eval_split',
        'data_path': 'train_datasets',
        'eval_data_path': 'eval_datasets',
        'max_samples': 'train_size',
        'val_max_samples': 'eval_size',
        'dataset_task_type': 'train_datasets',
        'sample_frames': 'num_frames',
        'interleave_probs': 'train_weights',
        'dataloader_num_workers': 'num_workers',
    },
    'model_cfgs': {
        'actor_model_name_or_path': 'model_name_or_path',
        'model_local_path': 'model_name_or_path',
        'max_length': 'model_max_length',
        'max_seq_length': 'model_max_length',
        'cutoff_len': 'model_max_length',
        'max_completion_length': 'max_new_tokens',
        'response_length': 'max_new_tokens',
        'reward_model': 'reward_model_name_or_path',
        'reward_model_path': 'reward_model_name_or_path',
    },
    'logger_cfgs': {
        'run_name': 'log_run_name',
        'project': 'log_project',
        'save_steps': 'save_interval',
        'logging_steps': 'log_interval',
    },
    'lora_cfgs': {
        'use_peft': 'use_lora',
        'lora_unet': 'use_lora',
        'lora_r': 'r',
        'lora_rank': 'r',
        'lora_modules_to_save': 'modules_to_save',
        'additional_target': 'modules_to_save',
        'lora_task_type': 'task_type',
    },
    'reward_cfgs': {'reward_funcs': 'reward_functions', 'multi_objective_aggregation': 'reward_aggregation'},
    'vllm_cfgs': {'vllm_max_model_length': 'vllm_max_model_len'},
}

ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        **{name: Alias(group, key) for group, names in _PLAIN.items() for name, key in names.items()},
        'load_checkpoint': _RESUME,
        'resume_from_checkpoint': _RESUME,
        'report_to': Alias('logger_cfgs', 'log_type', 'a list may name one', str | list[str], convert_report_to),
        'dataset_version': Alias(
            'data_cfgs', 'train_template', '`CHORES` is `train_template: Chores`', str, convert_dataset_version
        ),
        'lora_target': _TARGETS,
        'lora_target_modules': _TARGETS,
        'metric_for_best_model': Alias('train_cfgs', 'save_best', 'without `eval_`', str | None, convert_metric),
    }
)

MEANINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(('num_epochs', 'n_epochs', 'total_epochs', 'max_epochs'), ('epochs', '')),
        **dict.fromkeys(('total_steps', 'num_steps', 'max_train_steps', 'train_steps'), ('max_steps', '')),
        **dict.fromkeys(
            (
                *('train_batch_size', 'batch_size', 'micro_batch_size', 'train_micro_batch_size_per_gpu'),
                *('global_batch_size', 'total_batch_size', 'effective_batch_size'),
            ),
            ('per_device_train_batch_size', 'an optimizer step has so many × gradient_accumulation_steps × devices'),
        ),
        **dict.fromkeys(('eval_batch_size', 'test_batch_size'), ('per_device_eval_batch_size', '')),
        'rollout_batch_size': ('per_device_prompt_batch_size', 'that of each device'),
        'steps_per_generation': (
            'per_device_prompt_batch_size',
            'a rollout has so many × num_generations responses of each device, trained on update_iters times',
        ),
        'vf_coef': ('critic_lr', 'the critic has an optimizer of its own'),
        'value_model': ('reward_critic_model_name_or_path', ''),
        'vllm_mode': ('use_vllm', 'in the processes that train, or on vllm_server_urls'),
        **dict.fromkeys(('save_strategy', 'save_freq', 'checkpoint_interval'), ('save_interval', 'optimizer steps')),
        **dict.fromkeys(('grad_accum', 'accumulation_steps', 'grad_accum_steps'), ('gradient_accumulation_steps', '')),
        **dict.fromkeys(('lr', 'base_lr', 'actor_learning_rate'), ('learning_rate', '')),
        'critic_learning_rate': ('critic_lr', ''),
        **dict.fromkeys(('lr_scheduler', 'scheduler'), ('lr_scheduler_type', '')),
        'warmup_steps': ('lr_warmup_ratio', 'a share of the steps'),
        **dict.fromkeys(('adam_beta1', 'adam_beta2'), ('adam_betas', 'both, as in --adam_betas 0.9 0.95')),
        **dict.fromkeys(('gradient_clipping', 'clip_grad', 'gradient_clip_val'), ('max_grad_norm', '')),
        **dict.fromkeys(('torch_dtype', 'dtype', 'mixed_precision', 'precision'), ('bf16', 'or fp16')),
        **dict.fromkeys(('deepspeed_config', 'ds_config', 'zero_stage'), ('ds_cfgs', 'a DeepSpeed file')),
        **dict.fromkeys(('fsdp', 'fsdp_config', 'strategy', 'backend'), ('engine', 'deepspeed or fsdp')),
        **dict.fromkeys(('fsdp_offload_params', 'fsdp_offload'), ('fsdp_cpu_offload', '')),
        'reshard_after_forward': ('fsdp_reshard_after_forward', ''),
        **dict.fromkeys(('model', 'model_name', 'model_path', 'pretrain', 'model_id'), ('model_name_or_path', '')),
        'adapter_name_or_path': ('model_name_or_path', 'it takes the folder of an adapter to train on'),
        **dict.fromkeys(('dataset', 'dataset_path', 'train_file', 'train_data', 'dataset_dir'), ('train_datasets', '')),
        **dict.fromkeys(('eval_dataset', 'eval_file', 'val_size', 'test_file'), ('eval_datasets', '')),
        **dict.fromkeys(
            ('compute_accuracy', 'predict_with_generate', 'compute_metrics'), ('eval_tasks', 'such as [exact_match]')
        ),
        'template': (
            'train_template',
            "it reads the rows; the chat template is chat_template, by default the checkpoint's",
        ),
        **dict.fromkeys(
            ('dataset_text_field', 'user_key', 'assistant_key'), ('train_template_kwargs', 'options of the template')
        ),
        'template_kwargs': ('train_template_kwargs', 'eval_template_kwargs for evaluation data'),
        **dict.fromkeys(('mix_strategy', 'interleave'), ('train_mixing', '')),
        **dict.fromkeys(('preprocessing_num_workers', 'dataset_num_proc', 'num_proc'), ('num_workers', '')),
        **dict.fromkeys(
            ('completion_only_loss', 'assistant_only_loss', 'train_on_prompt', 'mask_history', 'mask_question_tokens'),
            ('train_on', 'which turns are trained'),
        ),
        **dict.fromkeys(('image_dir', 'media_dir'), ('image_folder', '')),
        'video_dir': ('video_folder', ''),
        'video_maxlen': ('max_frames', ''),
        'video_fps': ('fps', ''),
        **dict.fromkeys(
            ('image_max_pixels', 'image_min_pixels'), ('processor_kwargs', 'as in --processor_kwargs.max_pixels')
        ),
        **dict.fromkeys(
            ('packing', 'padding_free', 'neat_packing', 'use_liger_kernel'),
            ('layout', 'packed where the model bears it, by default'),
        ),
        **dict.fromkeys(('flash_attn', 'use_flash_attn'), ('attn_implementation', 'flash_attention_2')),
        **dict.fromkeys(('finetuning_type', 'lora'), ('use_lora', '')),
        **dict.fromkeys(('quantization_bit', 'q_lora', 'qlora'), ('use_bnb', 'beside use_lora')),
        **dict.fromkeys(('lora_bias',), ('modules_to_save', 'biases are not trained beside adapters')),
        'use_vision_lora': ('vision_lora', ''),
        'freeze_unet': ('use_lora', 'adapters leave the weights under them as they are'),
        'train_vision_encoder': ('freeze_vision_tower', 'the other way round'),
        'train_vision_projector': ('freeze_mm_proj', 'the other way round'),
        'freeze_trainable_modules': ('unfreeze_patterns', ''),
        **dict.fromkeys(('load_best_model_at_end', 'greater_is_better'), ('save_best', 'the metric')),
        'save_only_model': ('save_checkpoint', 'the other way round'),
        'precompute_ref_log_probs': ('reference_cache_dir', 'the folder for them'),
        **dict.fromkeys(('max_prompt_length', 'model_seq_len'), ('model_max_length', 'of prompt and response')),
        'kl_beta': ('kl_coeff', ''),
        'beta': ('kl_coeff', ''),
        **dict.fromkeys(('environment_factory', 'rollout_func'), ('environment', 'a class as file.py:Class')),
        **dict.fromkeys(
            ('max_tool_calling_iterations', 'max_assistant_turns'), ('max_turns', 'the last answer is a turn too')
        ),
        'vllm_server_base_url': ('vllm_server_urls', 'of servers of this package'),
        **dict.fromkeys(('reward_url', 'remote_rm'), ('remote_rm_url', '')),
        **dict.fromkeys(('output', 'save_path', 'ckpt_path'), ('output_dir', '')),
        **dict.fromkeys(('wandb_project', 'project_name'), ('log_project', '')),
        **dict.fromkeys(('use_wandb', 'logger'), ('log_type', '')),
    }
)
"""Keys by names that mean them and cannot stand for them, with what has to be known to write the key."""
