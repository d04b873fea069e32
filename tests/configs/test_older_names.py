"""Older names of the settings of online runs, by which scripts that there are go on working."""

from __future__ import annotations

import pytest
from pydantic import Field, model_validator

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.aliases import ALIASES, MEANINGS
from align_anything.configs.keys import aliases_of
from align_anything.configs.resolve import Resolved, resolve
from align_anything.configs.schema import AlgorithmCfgs, build_run_schema, groups_of
from align_anything.core.errors import SettingsError
from align_anything.core.lazy import LazyMapping

KNOWN = known_algorithms()
NEEDED = '--train_datasets d --train_template t --output_dir o'.split()
OLDER = """
train_cfgs:
  actor_lr: 3e-6
  actor_weight_decay: 0.02
  actor_lr_scheduler_type: linear
  actor_lr_warmup_ratio: 0.1
  actor_gradient_checkpointing: False
  critic_lr: 4e-6
  critic_weight_decay: 0.03
  critic_lr_scheduler_type: linear
  critic_lr_warmup_ratio: 0.2
  critic_gradient_checkpointing: True
  normalize_reward: True
  update_iters: 2
  per_device_prompt_batch_size: 8
  clip_range_ratio: 0.3
  clip_range_score: 40.0
  clip_range_value: 4.0
  kl_coeff: 0.05
  gamma: 0.9
  gae_lambda: 0.8
model_cfgs:
  actor_model_name_or_path: policy
  reward_model_name_or_path: judge
  reward_critic_model_name_or_path: critic
  max_new_tokens: 100
  temperature: 0.7
  top_p: 0.9
  repetition_penalty: 1.1
  remote_rm_url: http://localhost:6000/get_reward
  remote_rm_timeout: 10
  remote_rm_retry_times: 2
"""


def run(name: str, *argv: str) -> Resolved:
    return resolve('text_to_text', name, KNOWN[name], KNOWN, [*NEEDED, *argv], {})


def test_a_file_of_older_names_is_read(tmp_path) -> None:
    (tmp_path / 'older.yaml').write_text(OLDER)
    cfgs = run('ppo', '--config', f'{tmp_path}/older.yaml').cfgs
    train, model = cfgs.train_cfgs, cfgs.model_cfgs
    found = (train.learning_rate, train.weight_decay, train.lr_scheduler_type, train.lr_warmup_ratio)
    assert found == (3e-6, 0.02, 'linear', 0.1)
    assert not train.gradient_checkpointing and train.critic_gradient_checkpointing
    assert (train.critic_lr, train.gae_lambda, train.clip_range_score) == (4e-6, 0.8, 40.0)
    assert (model.model_name_or_path, model.reward_critic_model_name_or_path) == ('policy', 'critic')
    # As in each of the algorithms that have them.
    text = OLDER.replace('reward_critic_model_name_or_path', 'cost_model_name_or_path')
    (tmp_path / 'older.yaml').write_text(text)
    assert run('saferlhf', '--config', f'{tmp_path}/older.yaml').cfgs.model_cfgs.cost_model_name_or_path == 'critic'


def test_several_samples_are_generations() -> None:
    given = '--actor_model_name_or_path', 'm', '--n_samples_per_prompt', '6', '--advantage_estimator', 'rloo'
    assert run('multi_ppo', *given).algorithm.num_generations == 6


@pytest.mark.parametrize(
    ('name', 'argv', 'message'),
    [
        ('ppo', '--learning_rate 1e-6 --actor_lr 2e-6', "'train_cfgs.learning_rate' was given already"),
        ('grpo', '--critic_lr 2e-6', "'critic_lr' belongs to ppo"),
        ('sft', '--n_samples_per_prompt 4', "there is no key 'n_samples_per_prompt'"),
        ('multi_ppo', '--advantage_estimator gae', 'gae needs a critic: run the algorithm ppo'),
        ('ppo', '--actor_lr fast', 'train_cfgs.learning_rate'),
    ],
)
def test_what_an_older_name_cannot_mean(name: str, argv: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run(name, '--model_name_or_path', 'm', *argv.split())


@pytest.mark.parametrize('name', ['sft', 'ppo'])
def test_help_tells_the_older_names_of_the_keys_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(name, '--help', 'all')
    text = capsys.readouterr().out
    assert 'Other name of train_cfgs.learning_rate: the same.' in text
    assert ('--n_samples_per_prompt' in text) == (name == 'ppo')


def test_no_other_name_hides_a_key() -> None:
    for algorithm in KNOWN.values():
        schema = build_run_schema(algorithm)
        keys = {key for group in groups_of(schema).values() for key in group.model_fields}
        assert not aliases_of(schema).keys() & keys
        assert all(alias.key in keys for alias in aliases_of(schema).values())


@pytest.mark.parametrize(
    ('name', 'words', 'path', 'value'),
    [
        ('sft', '--num_train_epochs 3', 'train_cfgs.epochs', 3),
        ('sft', '--per_device_batch_size 3', 'train_cfgs.per_device_train_batch_size', 3),
        ('sft', '--deepspeed ds_z2_config.json', 'train_cfgs.ds_cfgs', 'ds_z2_config.json'),
        ('sft', '--lora_r 4 --use_peft True', 'lora_cfgs.r', 4),
        ('sft', '--lora_rank 4 --use_lora True', 'lora_cfgs.r', 4),
        ('sft', '--lora_target q_proj,v_proj --use_lora True', 'lora_cfgs.target_modules', ['q_proj', 'v_proj']),
        ('sft', '--lora_target all --use_lora True', 'lora_cfgs.target_modules', 'auto'),
        ('sft', '--lora_target_modules all-linear --use_lora True', 'lora_cfgs.target_modules', 'all-linear'),
        ('sft', '--report_to [mlflow]', 'logger_cfgs.log_type', 'mlflow'),
        ('sft', '--report_to swanlab', 'logger_cfgs.log_type', 'swanlab'),
        ('sft', '--report_to none', 'logger_cfgs.log_type', 'none'),
        ('sft', '--report_to [wandb]', 'logger_cfgs.log_type', 'wandb'),
        ('sft', '--max_length 100', 'model_cfgs.model_max_length', 100),
        ('sft', '--cutoff_len 100', 'model_cfgs.model_max_length', 100),
        ('sft', '--train-cfgs.warmup-ratio 0.2 --lr_scheduler_type linear', 'train_cfgs.lr_warmup_ratio', 0.2),
        ('sft', '--resume_from_checkpoint True', 'train_cfgs.resume', 'auto'),
        ('sft', '--resume', 'train_cfgs.resume', 'auto'),
        ('sft', '--overwrite_output_dir --seed 1', 'logger_cfgs.overwrite_output_dir', True),
        ('dpo', '--beta 0.3', 'train_cfgs.scale_coeff', 0.3),
        ('grpo', '--beta 0.3', 'train_cfgs.beta', 0.3),
        ('grpo', '--epsilon 0.3 --max_completion_length 9', 'train_cfgs.clip_range_ratio', 0.3),
        ('simpo', '--simpo_gamma 0.3', 'train_cfgs.gamma', 0.3),
        ('kto', '--desirable_weight 2', 'train_cfgs.scale_better', 2),
    ],
)
def test_names_that_everyone_knows(name: str, words: str, path: str, value: object) -> None:
    cfgs = run(name, '--model_name_or_path', 'm', *words.split()).cfgs
    group, key = path.split('.')
    assert getattr(getattr(cfgs, group), key) == value


@pytest.mark.parametrize(
    ('name', 'words', 'said'),
    [
        ('sft', '--train_batch_size 8', "Did you mean 'per_device_train_batch_size' (train_cfgs"),
        ('sft', '--num_epochs 8', "Did you mean 'epochs' (train_cfgs.epochs)?"),
        ('sft', '--template qwen', "Did you mean 'train_template' (data_cfgs.train_template)?"),
        ('sft', '--finetuning_type lora', "Did you mean 'use_lora'"),
        ('sft', '--packing True', "Did you mean 'layout'"),
        ('ppo', '--beta 0.1', "Did you mean 'kl_coeff'"),
        ('sft', '--global_batch_size 8', "Did you mean 'per_device_train_batch_size'"),
        ('sft', '--save_strategy epoch', "Did you mean 'save_interval'"),
        ('grpo', '--steps_per_generation 2', "Did you mean 'per_device_prompt_batch_size'"),
        ('ppo', '--vf_coef 0.1', "Did you mean 'critic_lr'"),
        ('sft', '--train_cfgs.max_length 3', "write 'model_cfgs.model_max_length'"),
        # Settings of groups that only other algorithms have.
        ('online_dpo', '--ptx_datasets d', "'ptx_datasets' belongs to grpo, multi_ppo, ppo"),
        ('sft', '--temperature 1', "'temperature' belongs to generate, grpo"),
        ('grpo', '--cost_model_name_or_path m', "'cost_model_name_or_path' belongs to saferlhf;"),
        ('cost_model', '--beta 1', "'beta' belongs to grpo"),
    ],
)
def test_a_hint_goes_by_meaning_first(name: str, words: str, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        run(name, '--model_name_or_path', 'm', *words.split())
    assert said in str(raised.value)


def test_every_meaning_is_a_key_of_some_run() -> None:
    keys = {key for kind in KNOWN.values() for group in groups_of(build_run_schema(kind)).values()
            for key in group.model_fields}  # fmt: skip
    assert {key for key, _ in MEANINGS.values()} <= keys
    assert not MEANINGS.keys() & ALIASES.keys()


class Contrary(AlgorithmCfgs):
    never: int = Field(1, description='Nothing.')

    @model_validator(mode='after')
    def _never(self) -> Contrary:
        raise ValueError('never may not be 1')


def test_an_algorithm_that_refuses_its_own_defaults_is_told_so() -> None:
    with pytest.raises(SettingsError, match='the defaults of the algorithm do not go together: never may not be 1'):
        resolve('text_to_text', 'contrary', Contrary, KNOWN, [*NEEDED, '--model_name_or_path', 'm'], {})


def test_other_algorithms_are_looked_up_for_a_hint_alone() -> None:
    asked = []
    known = LazyMapping(lambda: asked.append(1) or KNOWN)
    resolve('text_to_text', 'sft', KNOWN['sft'], known, [*NEEDED, '--model_name_or_path', 'm'], {})
    assert asked == []
    with pytest.raises(SettingsError, match='belongs to cost_model'):
        resolve('text_to_text', 'sft', KNOWN['sft'], known, [*NEEDED, '--scale_coeff', '1'], {})
    assert asked == [1]
