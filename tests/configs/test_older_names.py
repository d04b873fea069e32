"""Older names of the settings of online runs, by which scripts that there are go on working."""

from __future__ import annotations

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.keys import ALIASES
from align_anything.configs.resolve import Resolved, resolve
from align_anything.core.errors import SettingsError

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
        run(name, '--help')
    text = capsys.readouterr().out
    assert 'Other name of train_cfgs.learning_rate: the same.' in text
    assert ('--n_samples_per_prompt' in text) == (name == 'ppo')


def test_no_older_name_hides_a_key() -> None:
    for algorithm in KNOWN.values():
        assert not ALIASES.keys() & algorithm.model_fields.keys()
