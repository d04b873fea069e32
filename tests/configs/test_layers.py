"""Which layer wins, where each value came from, and what a broken layer says."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.evaluate import Evaluate
from align_anything.configs import layers
from align_anything.configs.resolve import resolve
from align_anything.configs.schema import RunCfgs
from align_anything.configs.yaml_text import dump_yaml, parse_yaml
from align_anything.core.errors import SettingsError
from align_anything.trainers.pairs import PAIRS
from tests.configs.made_up import KNOWN, SFT


@pytest.fixture
def six_layers(tmp_path, monkeypatch):
    """Folder that ships files; each layer sets one more key than the layer above it."""
    (tmp_path / 'train/text_to_text').mkdir(parents=True)
    monkeypatch.setattr(layers, 'TRAIN_FOLDER', tmp_path / 'train')
    monkeypatch.setattr('align_anything.configs.resolve.TRAIN_FOLDER', tmp_path / 'train')

    def content(number: int, keys: str) -> str:
        return 'train_cfgs:\n' + ''.join(f'  {key}: {number}\n' for key in keys.split())

    (tmp_path / 'train/sft.yaml').write_text(content(2, 'eval_interval epochs seed max_steps max_grad_norm'))
    (tmp_path / 'train/text_to_text/sft.yaml').write_text(content(3, 'epochs seed max_steps max_grad_norm'))
    (tmp_path / 'a.yaml').write_text(content(4, 'seed max_steps max_grad_norm'))
    return tmp_path


def test_each_layer_goes_over_the_one_before(six_layers, run):
    resolved = run(
        f'--config {six_layers}/a.yaml --max_grad_norm 6',
        {'ALIGN_ANYTHING__TRAIN_CFGS__MAX_STEPS': '5', 'ALIGN_ANYTHING__TRAIN_CFGS__MAX_GRAD_NORM': '5', 'PATH': 'x'},
    )
    train = resolved.cfgs.train_cfgs
    assert train.gradient_accumulation_steps == RunCfgs().train_cfgs.gradient_accumulation_steps == 1
    assert (train.eval_interval, train.epochs, train.seed, train.max_steps, train.max_grad_norm) == (2, 3, 4, 5, 6)
    origins = {key: resolved.origins[f'train_cfgs.{key}'] for key in ('eval_interval', 'epochs', 'seed', 'max_steps')}
    assert origins == {
        'eval_interval': 'configs/train/sft.yaml line 2',
        'epochs': 'configs/train/text_to_text/sft.yaml line 2',
        'seed': f'{six_layers}/a.yaml line 2',
        'max_steps': 'environment variable ALIGN_ANYTHING__TRAIN_CFGS__MAX_STEPS',
    }
    assert resolved.origins['train_cfgs.max_grad_norm'] == 'command line --max_grad_norm'
    assert resolved.origins['train_cfgs.bf16'] == 'default'


def test_the_defaults_of_a_pair_go_over_the_algorithms_file_and_under_the_pairs(six_layers, needed):
    given = {'eval_interval': 7, 'epochs': 7, 'learning_rate': 7.0}
    resolved = resolve('text_to_text', 'sft', SFT, KNOWN, needed, {}, given)
    train = resolved.cfgs.train_cfgs
    assert (train.eval_interval, train.epochs, train.learning_rate) == (7, 3, 7.0)
    assert resolved.origins['train_cfgs.eval_interval'] == 'pair text_to_text'
    assert not resolved.given('train_cfgs.eval_interval') and not resolved.given('train_cfgs.epochs')


def test_a_wrong_default_of_a_pair_names_the_pair(six_layers, needed, capsys):
    with pytest.raises(SettingsError) as caught:
        resolve('text_to_text', 'sft', SFT, KNOWN, needed, {}, {'epoch': 1, 'learning_rate': -1.0})
    unknown, wrong = caught.value.problems
    assert unknown.startswith("pair text_to_text: there is no key 'epoch'. Did you mean 'epochs'")
    assert wrong.startswith('train_cfgs.learning_rate = -1.0 (pair text_to_text): ')
    with pytest.raises(SystemExit):
        resolve('text_to_text', 'sft', SFT, KNOWN, ['--help'], {}, {'learning_rate': 7.0})
    assert '[7.0, pair text_to_text]' in capsys.readouterr().out


def test_later_config_file_wins_and_mappings_join(run, tmp_path):
    (tmp_path / 'a.yaml').write_text('train_cfgs:\n  seed: 1\n  lr_groups: {vision_tower: 1e-6, mm_proj: 1e-5}\n')
    (tmp_path / 'b.yaml').write_text('seed: 2\ntrain_cfgs:\n  lr_groups:\n    mm_proj: 3e-5\nlora_cfgs:\n')
    train = run(f'--config {tmp_path}/a.yaml --config={tmp_path}/b.yaml').cfgs.train_cfgs
    assert train.seed == 2
    assert train.lr_groups == {'vision_tower': 1e-6, 'mm_proj': 3e-5}


def test_empty_mapping_and_null_empty(run, tmp_path):
    (tmp_path / 'a.yaml').write_text('train_cfgs:\n  lr_groups: {vision_tower: 1e-6}\n')
    assert run(['--config', f'{tmp_path}/a.yaml', '--lr_groups', '{}']).cfgs.train_cfgs.lr_groups == {}
    assert run(['--config', f'{tmp_path}/a.yaml', '--lr_groups', 'null']).cfgs.train_cfgs.lr_groups is None


def test_entry_cannot_be_put_into_a_list(problems, tmp_path):
    (tmp_path / 'a.yaml').write_text('data_cfgs:\n  train_template_kwargs: [{prompt: a}]\n')
    (problem,) = problems(f'--config {tmp_path}/a.yaml --train_template_kwargs.prompt b')
    assert "'data_cfgs.train_template_kwargs' is a list there" in problem and 'a.yaml line 2' in problem


def test_environment(run, problems):
    environ = {
        'ZERO_STAGE_FILE': 'ds_z2_config.json',
        'ALIGN_ANYTHING__train_cfgs__learning_rate': '1e-4',
        'ALIGN_ANYTHING__DATA_CFGS__TRAIN_TEMPLATE_KWARGS__Prompt': 'question',
        'ALIGN_ANYTHING__TARGET_MODULES': '[q_proj, v_proj]',
        'ENV_PREFIX__lora_cfgs__use_lora': 'True',
    }
    cfgs = run('', environ).cfgs
    assert cfgs.train_cfgs.ds_cfgs == 'ds_z2_config.json'
    assert cfgs.train_cfgs.learning_rate == 1e-4
    assert cfgs.data_cfgs.train_template_kwargs == {'Prompt': 'question'}
    assert cfgs.lora_cfgs.target_modules == ['q_proj', 'v_proj']
    assert run('--ds_cfgs ds_z0_config.json', environ).cfgs.train_cfgs.ds_cfgs == 'ds_z0_config.json'
    found = problems('', {'ALIGN_ANYTHING__TRAIN_CFGS__SED': '1', 'ZERO_STAGE_FILE': ''})
    assert "environment variable ZERO_STAGE_FILE: the value of 'train_cfgs.ds_cfgs' is empty" in found[0]
    assert found[1].startswith("environment variable ALIGN_ANYTHING__TRAIN_CFGS__SED: there is no key 'train_cfgs.sed'")


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('train_cfgs:\n  seed: 1\n  seed: 2\n', "the key 'seed' stands twice"),
        ('train_cfgs:\n  seed: 1\ntrain_cfgs:\n  epochs: 2\n', "the key 'train_cfgs' stands twice"),
        ('train_cfgs: [1', 'not valid YAML'),
        ('- seed\n', 'must be a mapping of groups'),
        ('train_cfgs: 3\n', "'train_cfgs' is a group"),
        ('train_cfgs:\n  ? [a]\n  : 1\n', 'a key must be a name'),
        ('train_cfgs:\n  seed: 1\n  sead: 1\n', "line 3: there is no key 'train_cfgs.sead'. Did you mean 'seed'"),
        ('train_cfgs:\n  scale_coeff: 1\n', "line 2: 'scale_coeff' belongs to dpo"),
        ('train_cfgs:\n  seed: soon\n', "train_cfgs.seed = 'soon'"),
        ('train_cfgs:\n  load_checkpoint: True\n  resume: auto\n', "'train_cfgs.resume' was given already by"),
    ],
)
def test_broken_files(problems, tmp_path, text, said):
    (tmp_path / 'broken.yaml').write_text(text)
    (problem,) = problems(f'--config {tmp_path}/broken.yaml')
    assert said in problem and 'broken.yaml' in problem


def test_unreadable_file(problems, tmp_path):
    (problem,) = problems(f'--config {tmp_path}')
    assert problem.startswith(f'settings file {tmp_path}: ')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    (problem,) = problems(f'--config {tmp_path}/binary.yaml')
    assert 'binary.yaml' in problem


# `serve` is a command of its own, which runs with its file in tests/serve.
FILES = sorted(path for path in layers.TRAIN_FOLDER.rglob('*.yaml') if path.stem != 'serve')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_every_file_that_ships_makes_a_run(path: Path, needed):
    pair = path.parent.name if path.parent != layers.TRAIN_FOLDER else 'any_pair'
    algorithms = {**known_algorithms(), 'evaluate': Evaluate}
    resolved = resolve(pair, path.stem, algorithms[path.stem], algorithms, needed, {})
    assert any(
        f'configs/train/{path.relative_to(layers.TRAIN_FOLDER)}' in origin for origin in resolved.origins.values()
    )


def test_pair_file_states_differences_only(needed):
    algorithms = known_algorithms()
    for path in layers.TRAIN_FOLDER.glob('*/*.yaml'):
        defaults = PAIRS[path.parent.name].defaults
        general = resolve('any_pair', path.stem, algorithms[path.stem], algorithms, needed, {}, defaults).cfgs
        for parts, value, line in layers.parse_lines(path.read_text()):
            group, key = parts
            assert getattr(getattr(general, group), key) != value, f'{path}:{line} repeats what goes without it'


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-5', 1e-5),
        ('-2', -2),
        ('010', '010'),
        ('1:30', '1:30'),
        ('no', 'no'),
        ('none', 'none'),
        ('None', None),
        ('~', None),
        ('TRUE', True),
        ('2024-01-01', '2024-01-01'),
        ('[1, 2.5, a]', [1, 2.5, 'a']),
    ],
)
def test_yaml_without_surprises(text, value):
    parsed = parse_yaml(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    'value', ['no', '1e-5', 'None', '007', 'true', '', '2024-01-01', 'a: b', 1e-5, None, 'line\nline']
)
def test_dumped_value_is_read_back(value):
    assert parse_yaml(dump_yaml([value])) == [value]
