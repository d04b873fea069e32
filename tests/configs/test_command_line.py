"""Every way of writing a key and a value, and every way of getting it wrong."""

from __future__ import annotations

import pytest

from align_anything.configs.command_line import parse_command_line
from align_anything.configs.keys import KeyIndex, UnknownKey
from align_anything.configs.resolve import resolve
from align_anything.configs.schema import RunCfgs
from tests.configs.made_up import SFT


@pytest.mark.parametrize(
    'words',
    [
        '--learning_rate 1e-5',
        '--learning-rate 1e-5',
        '--learning_rate=1e-5',
        '--train_cfgs.learning_rate 1e-5',
        '--train-cfgs.learning-rate=1e-5',
        '--train_cfgs:learning_rate 1e-5',
        '--local_rank=0 --learning_rate 1e-5',
        '--local-rank 1 --learning_rate 1e-5',
        '--learning_rate 1e-5 --local_rank 3',
    ],
)
def test_every_form_of_a_key_is_the_same_key(run, words):
    assert run(words).cfgs.train_cfgs.learning_rate == 1e-5


@pytest.mark.parametrize(
    ('words', 'path', 'value'),
    [
        ('--max_steps None', 'train_cfgs.max_steps', None),
        ('--max_steps null', 'train_cfgs.max_steps', None),
        ('--max_steps 12', 'train_cfgs.max_steps', 12),
        ('--bf16 True', 'train_cfgs.bf16', True),
        ('--bf16 false', 'train_cfgs.bf16', False),
        ('--eval_strategy no', 'train_cfgs.eval_strategy', 'no'),
        ('--log_type none', 'logger_cfgs.log_type', 'none'),
        ('--log_run_name 007', 'logger_cfgs.log_run_name', '007'),
        ('--log_run_name 2024-01-01', 'logger_cfgs.log_run_name', '2024-01-01'),
        ('--log_run_name none', 'logger_cfgs.log_run_name', None),
        ('--train_split train[:10%]', 'data_cfgs.train_split', 'train[:10%]'),
        (['--chat_template', '{% for m in messages %}'], 'model_cfgs.chat_template', '{% for m in messages %}'),
        ('--adam_betas 0.8 0.99', 'train_cfgs.adam_betas', (0.8, 0.99)),
        ('--adam_betas 0.8,0.99', 'train_cfgs.adam_betas', (0.8, 0.99)),
        ('--adam_betas [0.8, 0.99]', 'train_cfgs.adam_betas', (0.8, 0.99)),
        ('--use_lora True --target_modules q_proj', 'lora_cfgs.target_modules', ['q_proj']),
        ('--use_lora True --target_modules q_proj v_proj', 'lora_cfgs.target_modules', ['q_proj', 'v_proj']),
        ('--use_lora True --target_modules auto', 'lora_cfgs.target_modules', 'auto'),
        ('--use_lora True --task_type TaskType.CAUSAL_LM', 'lora_cfgs.task_type', 'CAUSAL_LM'),
        ('--load_checkpoint True', 'train_cfgs.resume', 'auto'),
        ('--load_checkpoint False', 'train_cfgs.resume', None),
        ('--resume auto', 'train_cfgs.resume', 'auto'),
        ('--label_smoothing 0.1', 'train_cfgs.label_smoothing', 0.1),
    ],
)
def test_values_mean_what_a_person_means(run, words, path, value):
    group, key = path.split('.')
    assert getattr(getattr(run(words).cfgs, group), key) == value


@pytest.mark.parametrize(
    'words',
    [
        '--train_datasets a,b.jsonl c.jsonl',
        ['--train_datasets', '[a,b.jsonl, c.jsonl]'],
    ],
)
def test_several_datasets(words, tmp_path):
    argv = words.split() if isinstance(words, str) else words
    base = ['--model_name_or_path', 'm', '--train_template', 'Alpaca', '--output_dir', str(tmp_path)]
    found = resolve('text_to_text', 'sft', SFT, {}, [*base, *argv], {}).cfgs.data_cfgs.train_datasets
    assert found == (['a', 'b.jsonl', 'c.jsonl'] if words[1].startswith('[') else ['a,b.jsonl', 'c.jsonl'])


def test_entries_of_mappings_are_joined(run):
    cfgs = run(
        '--lr_groups.vision_tower 1e-6 --lr-groups.model.layers.0 2e-6 '
        '--train_template_kwargs.prompt question --train_template_kwargs.extra.deep 3'
    ).cfgs
    # A mapping to numbers takes the rest of the name as one entry; a mapping to anything nests at each dot.
    assert cfgs.train_cfgs.lr_groups == {'vision_tower': 1e-6, 'model.layers.0': 2e-6}
    assert cfgs.data_cfgs.train_template_kwargs == {'prompt': 'question', 'extra': {'deep': 3}}


def test_negative_numbers_are_values(problems):
    (problem,) = problems('--weight_decay -1e-2')
    assert problem == (
        'train_cfgs.weight_decay = -0.01 (command line --weight_decay): must be greater than or equal to 0.'
    )


@pytest.mark.parametrize(
    ('words', 'dry_run'),
    [
        ('', False),
        ('--dry_run', True),
        ('--dry-run --epochs 2', True),
        ('--dry_run True', True),
        ('--dry_run=false', False),
    ],
)
def test_dry_run(run, words, dry_run):
    assert run(words).dry_run is dry_run and run(words).device_gib is None


@pytest.mark.parametrize(('words', 'size'), [('--dry_run 80GiB --epochs 2', 80.0), ('--dry_run=0.5gib', 0.5)])
def test_a_dry_run_for_another_device(run, words, size):
    assert run(words).dry_run is True and run(words).device_gib == size


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        ('--epochs', "--epochs: 'train_cfgs.epochs' has no value"),
        ('--epochs --seed 1', "--epochs: 'train_cfgs.epochs' has no value"),
        (['--eval_template', ''], "--eval_template: the value of 'data_cfgs.eval_template' is empty"),
        (['--eval_template='], "--eval_template: the value of 'data_cfgs.eval_template' is empty"),
        (['--eval_template', ' '], "--eval_template: the value of 'data_cfgs.eval_template' is empty"),
        ('--seed 1 2', "stray value '2' after --seed"),
        ('--seed=1 2', "stray value '2'"),
        ('--dry_run 3', "--dry_run: '3' is no size of a device; give one such as 80GiB"),
        ('--dry_run 80GB', "--dry_run: '80GB' is no size"),
        ('--local_rank=0 7', "stray value '7'"),
        ('--seed 1 --train_cfgs.seed 1', "'train_cfgs.seed' was given already by command line --seed"),
        ('--resume auto --load_checkpoint True', "'train_cfgs.resume' was given already by command line --resume"),
        ('--config', '--config: names no file'),
        ('--config nowhere.yaml', 'settings file nowhere.yaml: '),
        (
            '--learning_rte 1',
            "there is no key 'learning_rte'. Did you mean 'learning_rate' (train_cfgs.learning_rate)?",
        ),
        ('--train_cfgs.learning_rte 1', "there is no key 'train_cfgs.learning_rte'. Did you mean 'learning_rate'"),
        ('--train_cfg.learning_rate 1', "Did you mean 'train_cfgs.learning_rate'?"),
        ('--train_cfgs.r 8', "'r' is a key of lora_cfgs: write 'lora_cfgs.r'"),
        ('--train_cfgs 8', "'train_cfgs' is a group; name one of its keys"),
        ('--qqqqqq 8', "there is no key 'qqqqqq'. --help lists every key"),
        ('--seed.part 8', "'train_cfgs.seed' is integer and has no key 'part'"),
        ('--scale_coeff 0.1', "'scale_coeff' belongs to dpo; a text_to_text sft run has no such key"),
        ('--train_cfgs.scale_coeff 0.1', "'scale_coeff' belongs to dpo; a text_to_text sft run has no such key"),
        ('--clip_range_ratio 0.2', "there is no key 'clip_range_ratio'."),
        (['--train_template_kwargs', '{a: ['], '--train_template_kwargs: not valid YAML'),
    ],
)
def test_one_mistake_gives_one_clear_problem(problems, words, said):
    (problem,) = problems(words)
    assert said in problem
    assert problem.startswith(('command line', 'settings file'))
    assert problem.endswith(('.', '?')) and not problem.endswith(('..', '?.'))


def test_key_of_two_groups_asks_for_the_group():
    index = KeyIndex(RunCfgs, 'text_to_text sft', {})
    index.fields['lora_cfgs']['seed'] = int
    with pytest.raises(UnknownKey) as caught:
        index.locate('seed')
    assert "'train_cfgs.seed' or 'lora_cfgs.seed'" in str(caught.value)
    assert index.locate('lora_cfgs.seed').group == 'lora_cfgs'


def test_stray_value_before_any_key():
    parsed = parse_command_line(['sft', '--epochs', '2'], KeyIndex(RunCfgs, 'run', {}))
    assert parsed.layer.problems == ["command line: stray value 'sft'. Keys start with --, as in --epochs 3."]
    assert [(setting.location.path, setting.value) for setting in parsed.layer.settings] == [('train_cfgs.epochs', 2)]
