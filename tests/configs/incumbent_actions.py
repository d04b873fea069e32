"""The settings file of align-anything for the pair text_video_to_action: its keys and values."""

from __future__ import annotations

from typing import Any

from align_anything.configs.yaml_text import dump_yaml

CAMERAS = ['raw_navigation_camera', 'raw_manipulation_camera']
VALUES: dict[str, dict[str, Any] | None] = {
    'train_cfgs': {
        'save_checkpoint': False, 'load_checkpoint': False, 'ds_cfgs': 'ds_z3_config.json', 'seed': 3407, 'epochs': 200,
        'per_device_train_batch_size': 8, 'per_device_val_batch_size': 12, 'gradient_accumulation_steps': 2,
        'gradient_checkpointing': False, 'learning_rate': 0.0001, 'lr_scheduler_type': 'constant',
        'lr_warmup_ratio': 0.0, 'weight_decay': 0.0, 'adam_betas': [0.9, 0.95], 'adam_epsilon': 1e-8, 'loss': 'action',
        'val_strategy': 'steps', 'val_interval': 500, 'max_grad_norm': 1.0, 'bf16': True, 'fp16': False,
    },
    'data_cfgs': {
        'dataset_version': 'CHORES', 'dataset_task_type': ['PickupType'], 'data_dir': 'path/to/data',
        'sliding_window': 100, 'init_prob_sample_last_steps': 0.0, 'final_prob_sample_last_steps': 0.0,
        'reduce_action_redundancy': False, 'max_samples': 10_000_000, 'val_max_samples': 640, 'val_datasets': False,
        'num_workers': 8,
    },
    'sensor_cfgs': {'input_sensors': CAMERAS},
    'logger_cfgs': {
        'log_type': 'wandb', 'log_project': None, 'log_run_name': None, 'output_dir': None, 'cache_dir': None,
        'save_total_limit': 1, 'log_video_interval': 2000, 'log_video_interval_val': 100,
    },
    'model_cfgs': {
        'model_architecture': 'EarlyFusionCnnTransformer', 'model_name_or_path': None, 'model_version': 'small_3',
    },
    'lora_cfgs': {
        'use_lora': False, 'task_type': 'TaskType.CAUSAL_LM', 'inference_mode': False, 'r': 16, 'lora_alpha': 16,
        'lora_dropout': 0.1, 'target_modules': ['q_proj', 'v_proj'], 'save_full_model': True,
    },
    'bnb_cfgs': {
        'use_bnb': False, 'load_in_4bit': True, 'load_in_8bit': False, 'bnb_4bit_quant_type': 'nf4',
        'bnb_4bit_use_double_quant': True, 'bnb_4bit_compute_dtype': 'float16',
    },
    'special_tokens': None,
}  # fmt: skip


def incumbent_file(**data: Any) -> str:
    """The file, with some values of `data_cfgs` changed."""
    return dump_yaml({**VALUES, 'data_cfgs': {**(VALUES['data_cfgs'] or {}), **data}})
