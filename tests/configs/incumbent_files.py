"""Settings files as align-anything ships them: their keys and values, written from a table of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.configs.yaml_text import dump_yaml

Values = dict[str, Any]

TEXT, IMAGE, AUDIO, VIDEO, ANY = (
    f'{kind}_to_text' for kind in ('text', 'text_image', 'text_audio', 'text_video', 'any')
)
FILES = [
    *((TEXT, name) for name in ('sft', 'rm', 'rm_score', 'dpo', 'kto', 'orpo', 'simpo')),
    *((TEXT, name) for name in ('ppo', 'multi_ppo', 'ppo_remote_rm', 'ppo_vllm', 'grpo')),
    *((IMAGE, name) for name in ('sft', 'rm', 'cost_model', 'dpo', 'ppo', 'saferlhf')),
    *((pair, name) for pair in (AUDIO, VIDEO) for name in ('sft', 'rm', 'dpo', 'ppo')),
    (ANY, 'sft'),
    *((f'text_to_{kind}', name) for kind in ('image', 'audio', 'video') for name in ('sft', 'dpo')),
]
PIPELINES = ('text_to_image', 'text_to_audio', 'text_to_video')
ONLINE = ('ppo', 'multi_ppo', 'ppo_remote_rm', 'ppo_vllm', 'grpo', 'saferlhf')
SCALES = {'orpo': 0.5, 'simpo': 2.5, 'cost_model': 1}


def _train(pair: str, name: str) -> Values:
    common: Values = {
        'ds_cfgs': 'ds_z3_config.json', 'epochs': 3, 'seed': 42, 'per_device_train_batch_size': 1,
        'per_device_eval_batch_size': 4 if name == 'cost_model' else 1, 'gradient_accumulation_steps': 1,
        'adam_betas': [0.9, 0.95], 'bf16': True, 'fp16': False, 'eval_strategy': 'epoch', 'eval_interval': 10,
    }  # fmt: skip
    if pair in PIPELINES:
        return common | _offline(pair, name) | _denoising(pair, name)
    if name == 'sft':
        common |= {'adam_epsilon': 1e-8, 'max_grad_norm': 1.0}
    if (pair, name) == (TEXT, 'sft'):
        common |= {'epochs': 1, 'eval_strategy': 'steps', 'lr_scheduler_type': 'constant'}
    if pair == VIDEO and name == 'rm':
        common |= {'eval_strategy': 'steps', 'eval_interval': 1}
    if pair != TEXT:
        common |= {'freeze_language_model': False, 'freeze_mm_proj': pair == VIDEO and name == 'sft'}
        common |= {'freeze_vision_tower': True} if pair != AUDIO else {'freeze_audio_tower': name == 'rm'}
    if pair in (AUDIO, ANY):
        common |= {'freeze_audio_proj': False}
    if pair == ANY:
        common = {key: value for key, value in common.items() if key != 'freeze_mm_proj'}
        common |= {'freeze_vision_proj': True, 'freeze_audio_proj': True, 'freeze_audio_tower': True}
    return common | (_online(pair, name) if name in ONLINE else _offline(pair, name) | common)


def _offline(pair: str, name: str) -> Values:
    found: Values = {
        'gradient_checkpointing': True, 'learning_rate': 2e-5, 'lr_scheduler_type': 'cosine', 'lr_warmup_ratio': 0.03,
        'weight_decay': 0.0, 'save_checkpoint': False, 'load_checkpoint': False,
    }  # fmt: skip
    if name not in ('sft', 'rm_score') or (pair, name) == (TEXT, 'rm_score'):
        found['regularization'] = 0.001
    if name in ('dpo', 'kto', 'orpo', 'simpo', 'cost_model') and pair not in PIPELINES:
        found['scale_coeff'] = SCALES.get(name, 0.1)
    if name == 'kto':
        found |= {'scale_better': 1, 'scale_worse': 1, 'kl_steps': 1, 'per_device_kl_batch_size': 64}
    if name == 'simpo':
        found['gamma'] = 1.4
    return found


def _denoising(pair: str, name: str) -> Values:
    adapts = name == 'dpo' and pair != 'text_to_video'
    found: Values = {
        'per_device_train_batch_size': 4, 'per_device_eval_batch_size': 4, 'gradient_accumulation_steps': 16,
        'adam_epsilon': 1e-8, 'max_grad_norm': 1.0, 'freeze_unet': adapts, 'lora_unet': adapts,
    }  # fmt: skip
    if name == 'dpo':
        found |= {
            'adam_betas': [0.9, 0.999], 'learning_rate': 1e-5, 'lr_scheduler_type': 'constant', 'weight_decay': 0.01,
            'beta_coeff': 2500, 'loss_type': 'sigmoid', 'vae_encode_batch_size': 8,
        }  # fmt: skip
    if pair == 'text_to_audio':
        return found | {'clips_per_audio': 1, 'mel_first': False, 'num_mel_bins': 64, 'max_frames': 500}
    found['resolution'] = 512
    if pair == 'text_to_video':
        found |= {'gradient_checkpointing': False, 'sample_frames': 16, 'do_resize': True}
    return found


def _online(pair: str, name: str) -> Values:
    found: Values = {
        'actor_lr': 1e-5, 'actor_weight_decay': 0.01, 'actor_lr_scheduler_type': 'cosine',
        'actor_lr_warmup_ratio': 0.03, 'actor_gradient_checkpointing': True,
        'critic_lr': 5e-6, 'critic_weight_decay': 0.0, 'critic_lr_scheduler_type': 'constant',
        'critic_lr_warmup_ratio': 0.03, 'normalize_reward': False,
        'update_iters': 1, 'per_device_prompt_batch_size': 1,
    }  # fmt: skip
    if name == 'grpo':
        return found | {'beta': 0.01, 'num_generations': 10, 'load_checkpoint': False, 'save_checkpoint': True}
    found |= {
        'critic_gradient_checkpointing': True, 'clip_range_ratio': 0.2, 'clip_range_score': 50.0,
        'clip_range_value': 5.0, 'gae_lambda': 0.95, 'gamma': 1.0, 'kl_coeff': 0.02,
        'ptx_coeff': 0.0 if pair == AUDIO else 16.0,
    }  # fmt: skip
    if name == 'multi_ppo':
        found |= {'advantage_estimator': 'reinforce', 'n_samples_per_prompt': 4}
    if name == 'saferlhf':
        found |= {
            'episode_cost_window_size': 128, 'lambda_init': 10, 'lambda_lr': 0.1, 'lambda_max': 20,
            'lambda_update_delay_steps': 1, 'threshold': -0.5,
        }  # fmt: skip
    return found


def _data(pair: str, name: str) -> Values:
    keys = ('datasets', 'template', 'size', 'split', 'data_files')
    roles = ('train', 'eval', 'ptx') if name in ONLINE else ('train', 'eval')
    found: Values = {f'{role}_{key}': None for role in roles for key in keys}
    found |= {f'{role}_optional_args': [] for role in roles}
    if pair in PIPELINES:
        return found
    found |= {'train_name': None, 'eval_subset': None}
    if name in ONLINE:
        found['ptx_subset'] = None
    return found | ({'load_multi_datasets': False} if name == 'sft' and pair != TEXT else {})


def _model(pair: str, name: str) -> Values:
    found: Values = {'trust_remote_code': True, 'model_max_length': 2048}
    if pair in PIPELINES:
        found['model_max_length'] = 512
    if name not in ONLINE:
        return found | {'model_name_or_path': None}
    found |= {key: None for key in ('actor_model_name_or_path', 'reward_model_name_or_path')}
    found |= {'reward_critic_model_name_or_path': None, 'temperature': 1.0, 'top_p': 1.0, 'repetition_penalty': 1.0}
    if name == 'saferlhf':
        found |= {'cost_model_name_or_path': None, 'cost_critic_model_name_or_path': None}
    if name == 'ppo_remote_rm':
        found |= {
            'remote_rm_url': 'http://localhost:6000/get_reward',
            'remote_rm_timeout': 100,
            'remote_rm_retry_times': 3,
        }
    return found | ({'max_new_tokens': 512} if pair != TEXT else {})


LORA: Mapping[str, Values] = {
    'lora_cfgs': {
        'use_lora': False, 'task_type': 'TaskType.CAUSAL_LM', 'inference_mode': False, 'r': 16, 'lora_alpha': 16,
        'lora_dropout': 0.1, 'target_modules': ['q_proj', 'v_proj'], 'save_full_model': True,
    },
    'bnb_cfgs': {
        'use_bnb': False, 'load_in_4bit': True, 'load_in_8bit': False, 'bnb_4bit_quant_type': 'nf4',
        'bnb_4bit_use_double_quant': True, 'bnb_4bit_compute_dtype': 'float16',
    },
}  # fmt: skip
VLLM: Mapping[str, Any] = {
    'use_vllm': True, 'vllm_num_engines': 1, 'vllm_tensor_parallel_size': 1, 'vllm_enable_prefix_caching': True,
    'vllm_enforce_eager': True, 'vllm_max_model_len': 2048, 'vllm_gpu_memory_utilization': 0.9,
    'vllm_enable_sleep': False,
}  # fmt: skip


def file_of(pair: str, name: str, **train: Any) -> str:
    """The text of such a file; `train` changes or adds keys of train_cfgs."""
    groups: Values = {
        'train_cfgs': _train(pair, name) | train,
        'data_cfgs': _data(pair, name),
        'logger_cfgs': {
            'log_type': 'wandb', 'log_project': 'align-anything', 'log_run_name': name, 'output_dir': None,
            'cache_dir': None, 'save_total_limit': 1,
        },
        'model_cfgs': _model(pair, name),
        'special_tokens': None,
    }  # fmt: skip
    if pair == TEXT and name not in ('rm', 'rm_score') or (pair, name) == (AUDIO, 'dpo'):
        groups |= LORA
    if name == 'ppo_vllm':
        groups['vllm_cfgs'] = dict(VLLM)
    if (pair, name) == (VIDEO, 'dpo'):
        groups['processor_kwargs'] = {'min_pixels': 25088, 'max_pixels': 50176}
    return dump_yaml(groups)
