"""All problems at once, checks across keys, the algorithm's own fields, help, and the saved file."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import Field

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.deepspeed_files import deepspeed_file_names, load_deepspeed_config
from align_anything.configs.help import COMMON
from align_anything.configs.online import OnlineRunCfgs, SafeRunCfgs
from align_anything.configs.redaction import without_secrets
from align_anything.configs.resolve import resolve
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import AlgorithmCfgs, RunCfgs, build_run_schema, groups_of
from align_anything.core.errors import SettingsError
from align_anything.engines.deepspeed_config import build_config
from scripts.document import main as document
from tests.configs.made_up import DPO, KNOWN, SFT


def test_all_problems_at_once():
    argv = '--learning_rte 1 --epochs none_at_all --bf16 True --fp16 True --r 0 --eval_strategy stops'.split()
    with pytest.raises(SettingsError) as caught:
        resolve('text_to_text', 'sft', SFT, KNOWN, argv, {'ALIGN_ANYTHING__LOG_TYPE': 'wandbb'})
    starts = [problem.split(' ')[0] for problem in caught.value.problems]
    # One for each mistake, and one for each of the four keys without which no run starts.
    assert sorted(starts) == sorted(
        ['command', 'train_cfgs.epochs', 'train_cfgs.eval_strategy', 'lora_cfgs.r', 'logger_cfgs.log_type']
        + ['train_cfgs.fp16', 'model_cfgs.model_name_or_path', 'data_cfgs.train_datasets', 'data_cfgs.train_template']
        + ['logger_cfgs.output_dir']
    )
    text = str(caught.value)
    assert "(environment variable ALIGN_ANYTHING__LOG_TYPE): expected 'tensorboard' or 'wandb'" in text
    assert "Did you mean 'steps'?" in text


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        ('--seed 1.5', 'train_cfgs.seed = 1.5 (command line --seed): '),
        ('--epochs True', 'train_cfgs.epochs = True (command line --epochs): expected number.'),
        ('--epochs 0', 'train_cfgs.epochs = 0.0 (command line --epochs): nothing would be trained'),
        ('--epochs -1', 'must be greater than or equal to 0'),
        ('--max_steps 0', 'must be greater than 0'),
        ('--learning_rate fast', "train_cfgs.learning_rate = 'fast' (command line --learning_rate): expected number."),
        ('--learning_rate -1e-5', 'must be greater than or equal to 0'),
        ('--learning_rate .nan', 'must be a finite number'),
        ('--lr_groups.vision_tower -1e-5', "train_cfgs.lr_groups = {'vision_tower': -1e-05}"),
        ('--lr_groups.( 1e-5', 'is not a regular expression'),
        ('--unfreeze_patterns *', 'is not a regular expression'),
        ('--lr_scheduler_type cosin', "Did you mean 'cosine'?"),
        ('--lr_scheduler_type constant --lr_warmup_ratio 0.1', "'constant' has no warm-up"),
        ('--adam_betas 0.9 1.0', 'must lie from 0 up to, not including, 1'),
        ('--adam_betas 0.9', 'train_cfgs.adam_betas = [0.9]'),
        ('--fp16 True', 'train_cfgs.fp16 = True (command line --fp16): train_cfgs.bf16 is on as well'),
        ('--eval_interval 0', 'must be greater than 0'),
        ('--save_interval 0', 'must be greater than 0'),
        ('--log_interval 0', 'must be greater than 0'),
        ('--layout ragged', "train_cfgs.layout = 'ragged'"),
        ('--ds_cfgs ds_z4_config.json', "there is no DeepSpeed file 'ds_z4_config.json'. Did you mean 'ds_z"),
        ('--streaming True', 'data_cfgs.streaming = True (command line --streaming): needs train_cfgs.max_steps'),
        ('--train_weights 1 2', 'has 2 entries for 1 datasets'),
        ('--train_weights 0', 'at least one must be positive'),
        ('--train_size 0', 'data_cfgs.train_size = 0'),
        ('--train_split a b', 'has 2 entries for 1 datasets'),
        ('--train_split []', 'has 0 entries for 1 datasets'),
        ('--eval_datasets d', 'data_cfgs.eval_template = None (default): is required'),
        ('--image_folder /nowhere/at/all', 'is not a folder'),
        ('--video_folder /nowhere/at/all', 'data_cfgs.video_folder'),
        ('--audio_folder /nowhere/at/all', 'data_cfgs.audio_folder'),
        ('--num_frames 0', 'data_cfgs.num_frames = 0'),
        ('--min_frames 9 --max_frames 8', 'is over max_frames (8)'),
        ('--long_audio split', 'needs max_audio_seconds'),
        ('--max_audio_seconds 0', 'data_cfgs.max_audio_seconds = 0'),
        ('--resume /nowhere/at/all', 'there is no such folder'),
        ('--max_skipped_ratio 2', 'must be less than or equal to 1'),
        ('--use_bnb True', 'needs lora_cfgs.use_lora'),
        ('--use_lora True --use_bnb True --load_in_8bit True', 'are both on'),
        ('--use_lora True --use_bnb True --load_in_4bit False', 'are both off'),
        ('--use_lora True --inference_mode True', 'freezes the adapters'),
        ('--use_lora True --target_modules []', 'names no module'),
        ('--smooth_from 3', 'train_cfgs: smooth_from needs label_smoothing.'),
    ],
)
def test_every_check_has_its_own_problem(problems, words, said):
    (problem,) = problems(words)
    assert said in problem


@pytest.mark.parametrize(
    'words',
    [
        '--epochs 0 --max_steps 5',
        '--streaming True --max_steps 5',
        '--fp16 True --bf16 False',
        '--use_lora True --use_bnb True',
        '--use_lora True --use_bnb True --load_in_8bit True --load_in_4bit False',
        '--eval_datasets d --eval_template Alpaca',
        '--train_weights 2',
        '--smooth_from 3 --label_smoothing 0.1',
    ],
)
def test_what_goes_together_passes(run, words):
    run(words)


def test_missing_value_does_not_cause_a_second_problem(problems):
    (problem,) = problems('--epochs 0 --max_steps')
    assert 'train_cfgs.max_steps' in problem


def test_output_under_a_file_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    argv = f'--model_name_or_path m --train_datasets d --train_template t --output_dir {tmp_path}/file/out'.split()
    with pytest.raises(SettingsError, match='cannot be made: .*file is a file'):
        resolve('text_to_text', 'sft', SFT, KNOWN, argv, {})


@pytest.mark.parametrize(
    ('words', 'key'),
    [
        ('--train_template A B', 'train_template'),
        ('--train_template A --train_size 5 6', 'train_size'),
        ('--train_template A --train_weights 1 2', 'train_weights'),
        ('--train_template A --train_data_files x y', 'train_data_files'),
        ('--train_template A --train_name en', ''),
        ('--train_template A B C --train_weights 1 0 2 --train_size 5 null 6', ''),
    ],
)
def test_lists_fit_the_datasets(tmp_path, words, key):
    argv = f'--model_name_or_path m --output_dir {tmp_path} --train_datasets a b c {words}'.split()
    if not key:
        resolve('text_to_text', 'sft', SFT, KNOWN, argv, {})
        return
    with pytest.raises(SettingsError) as caught:
        resolve('text_to_text', 'sft', SFT, KNOWN, argv, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f'data_cfgs.{key} = ') and 'for 3 datasets' in problem


def test_older_spellings_of_data_keys(run):
    data = run(
        [
            '--train_optional_args',
            '[]',
            '--train_template_kwargs',
            '[]',
            '--eval_template',
            '[One]',
            '--eval_datasets',
            'e',
        ]
    ).cfgs.data_cfgs
    assert data.train_optional_args == data.train_template_kwargs == {}
    assert data.eval_template == 'One'
    # A list of files belongs to the one dataset; it is not a list with an entry for each dataset.
    assert run('--train_data_files x.json y.json').cfgs.data_cfgs.train_data_files == ['x.json', 'y.json']


def test_algorithm_fields_are_in_train_cfgs_and_in_the_algorithm(run):
    resolved = run('--label_smoothing 0.2')
    assert resolved.cfgs.train_cfgs.label_smoothing == 0.2
    assert resolved.algorithm == SFT(label_smoothing=0.2)
    assert resolved.origins['train_cfgs.label_smoothing'] == 'command line --label_smoothing'
    with pytest.raises(ValueError, match='frozen'):
        resolved.cfgs.train_cfgs.seed = 1


def test_careless_algorithms_are_refused():
    class Clash(AlgorithmCfgs):
        seed: int = Field(1, description='Seed.')

    class Silent(AlgorithmCfgs):
        beta: float = 0.1

    class Odd(AlgorithmCfgs):
        inner: RunCfgs = Field(RunCfgs(), description='Too much.')

    class Bare(AlgorithmCfgs):
        beta: float = Field(description='No default.')

    class Warm(AlgorithmCfgs):
        run_cfgs = OnlineRunCfgs
        temperature: float = Field(1.0, description='Taken by a group that runs of it have.')

    for cfgs, said in (
        (Clash, 'Clash.seed clashes with train_cfgs.seed'),
        (Warm, 'Warm.temperature clashes with model_cfgs.temperature'),
        (Silent, 'Silent.beta needs a description'),
        (Odd, 'cannot have the type'),
        (Bare, 'Bare.beta needs a default'),
    ):
        with pytest.raises(TypeError, match=said):
            build_run_schema(cfgs)


@pytest.mark.parametrize('schema', [RunCfgs, SafeRunCfgs])
def test_every_key_is_described_in_sentences(schema):
    for group, model in groups_of(schema).items():
        assert model.__doc__, group
        for key, field in model.model_fields.items():
            assert field.description and field.description[0].isupper() and field.description.endswith('.'), key
            # A key that saving takes for a secret would be missing from the saved file.
            kinds = str(field.annotation)
            number = isinstance(field.default, int | float) or ('int' in kinds and 'str' not in kinds)
            saved = {key: 1 if number else 'text'}
            assert without_secrets(saved) == saved, key
    assert without_secrets({'action_tokens': 'tail', 'hf_token': 'x'}) == {'action_tokens': 'tail'}


def test_help_lists_every_key_of_the_run(run, capsys):
    with pytest.raises(SystemExit) as caught:
        run('--help all --learning_rte 3 --seed 5')
    assert caught.value.code == 0
    text = capsys.readouterr().out
    schema = build_run_schema(SFT)
    for group, model in groups_of(schema).items():
        assert f'\n{group}: ' in text
        for key, field in model.model_fields.items():
            assert f'  --{key}  ' in text
            assert field.description.split()[0] in text
    joined = ' '.join(text.split())
    assert 'Seed of the data order, the initialisation of new weights and dropout. [5, command line --seed]' in joined
    epochs = 'How often the run goes through the training data; 0.5 is half of them.'
    assert f'{epochs} [1, configs/train/text_to_text/sft.yaml line 3]' in joined
    assert '--scale_coeff' not in text
    with pytest.raises(SystemExit):
        run('-h', {'RANK': '1'})
    assert capsys.readouterr().out == ''


def test_help_shows_common_settings_and_those_of_the_algorithm_first(run, capsys):
    schema = build_run_schema(SFT)
    every = {key for model in groups_of(schema).values() for key in model.model_fields}
    assert len(COMMON) == 20 and {*COMMON} <= every
    with pytest.raises(SystemExit):
        run('--help')
    text = capsys.readouterr().out
    shown = re.findall(r'^  --([a-z]\w+)  ', text, re.MULTILINE)
    assert shown == [*COMMON, *(key for key in SFT.model_fields if key not in COMMON)]
    assert f'{len(every) - len(shown)} further settings: --help all' in text
    with pytest.raises(SystemExit):
        run('--help all')
    assert re.findall(r'^  --([a-z]\w+)  ', capsys.readouterr().out, re.MULTILINE)[: len(shown)] == shown


def test_saved_settings_make_the_same_run(run, tmp_path):
    resolved = run(
        '--lr_groups.vision_tower 1e-6 --adam_betas 0.8 0.9 --log_run_name 1e-5 '
        '--use_lora True --target_modules q_proj '
        '--label_smoothing 0.1 --eval_strategy no --train_template_kwargs.columns.prompt no --ds_cfgs ds_z0_config.json'
    )
    (tmp_path / 'resolved.yaml').write_text(dump_resolved(resolved.cfgs))
    again = resolve('text_to_text', 'sft', SFT, KNOWN, ['--config', str(tmp_path / 'resolved.yaml')], {})
    assert again.cfgs == resolved.cfgs and again.algorithm == resolved.algorithm
    # The file says everything: without the files that ship it still makes the same run.
    elsewhere = resolve('text_image_to_text', 'sft', SFT, KNOWN, ['--config', str(tmp_path / 'resolved.yaml')], {})
    assert elsewhere.cfgs == resolved.cfgs


def test_secrets_are_not_saved_or_said(run, problems):
    resolved = run(
        '--train_optional_args.token hf_abc --train_optional_args.storage_options.SecretKey s3cr3t '
        '--train_optional_args.max_tokens 5 --eval_datasets e --eval_template t --eval_data_files https://me:pw@host/data.json?sig=1&access_token=zzz'
    )
    text = dump_resolved(resolved.cfgs)
    for secret in ('hf_abc', 's3cr3t', 'me:pw', 'zzz'):
        assert secret not in text
    assert 'max_tokens: 5' in text
    assert 'https://host/data.json?sig=1' in text
    assert '# left out because it holds a secret: data_cfgs.train_optional_args.token\n' in text
    assert '# left out because it holds a secret: data_cfgs.train_optional_args.storage_options.SecretKey\n' in text
    (problem,) = problems(['--train_optional_args', '[{token: hf_abc}, {}]'])
    assert 'hf_abc' not in problem and 'data_cfgs.train_optional_args' in problem


@pytest.mark.parametrize('name', deepspeed_file_names())
def test_deepspeed_files_hold_zero_only(name):
    content = load_deepspeed_config(name)
    assert set(content) == {'zero_optimization'}
    assert content['zero_optimization']['stage'] == int(name.removeprefix('ds_z')[0])
    assert ('offload_optimizer' in content['zero_optimization']) == ('offload' in name)


def test_five_deepspeed_files_ship():
    assert deepspeed_file_names() == [
        f'ds_{kind}_config.json' for kind in ('z0', 'z2', 'z2_offload', 'z3', 'z3_offload')
    ]


def test_own_deepspeed_file(run, problems, tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text(
        json.dumps({'zero_optimization': {'stage': 1}, 'train_batch_size': 'auto', 'bf16': {'enabled': 'auto'}})
    )
    assert load_deepspeed_config(run(f'--ds_cfgs {path}').cfgs.train_cfgs.ds_cfgs) == {
        'zero_optimization': {'stage': 1}
    }
    path.write_text(json.dumps({'gradient_clipping': 0.5}))
    (problem,) = problems(f'--ds_cfgs {path}')
    assert "sets 'gradient_clipping', which train_cfgs.max_grad_norm decides" in problem
    for text, said in (('{', 'cannot be read as JSON'), ('[]', 'must hold a JSON object')):
        path.write_text(text)
        (problem,) = problems(f'--ds_cfgs {path}')
        assert said in problem


HUGGING_FACE = {
    'fp16': {'enabled': 'auto', 'loss_scale': 0, 'loss_scale_window': 1000, 'initial_scale_power': 16},
    'bf16': {'enabled': 'auto'},
    'optimizer': {'type': 'AdamW', 'params': {'lr': 'auto', 'betas': 'auto', 'eps': 'auto', 'weight_decay': 'auto'}},
    'scheduler': {'type': 'WarmupLR', 'params': {'warmup_min_lr': 'auto', 'warmup_max_lr': 'auto'}},
    'zero_optimization': {
        'stage': 3,
        'offload_optimizer': {'device': 'cpu', 'pin_memory': True},
        'overlap_comm': True,
        'reduce_bucket_size': 'auto',
        'stage3_prefetch_bucket_size': 'auto',
    },
    'gradient_accumulation_steps': 'auto',
    'gradient_clipping': 'auto',
    'steps_per_print': 2000,
    'train_batch_size': 'auto',
    'train_micro_batch_size_per_gpu': 'auto',
    'wall_clock_breakdown': False,
}


def test_a_deepspeed_file_in_hugging_face_form(run, problems, tmp_path):
    path = tmp_path / 'zero3.json'
    path.write_text(json.dumps(HUGGING_FACE))
    found = run(f'--deepspeed {path}')
    assert load_deepspeed_config(found.cfgs.train_cfgs.ds_cfgs) == {
        'fp16': {'loss_scale': 0, 'loss_scale_window': 1000, 'initial_scale_power': 16},
        'zero_optimization': {
            'stage': 3, 'offload_optimizer': {'device': 'cpu', 'pin_memory': True}, 'overlap_comm': True,
        },
        'steps_per_print': 2000,
        'wall_clock_breakdown': False,
    }  # fmt: skip
    assert [note.split(': ', 1)[1].split(' is left')[0] for note in found.notes] == [
        "the optimizer 'AdamW'", "the scheduler 'WarmupLR'",
    ]  # fmt: skip
    path.write_text(json.dumps({**HUGGING_FACE, 'fp16': {'enabled': False, 'loss_scale': 0}}))
    assert 'fp16' not in load_deepspeed_config(str(path))
    for key, value in (
        ('fp16', {'enabled': True}),
        ('optimizer', {'type': 'Lamb', 'params': {'lr': 'auto'}}),
        ('optimizer', {'type': 'AdamW', 'params': {'lr': 1e-4}}),
        ('scheduler', {'type': 'WarmupLR', 'params': {'warmup_num_steps': 5}}),
        # Would train in another precision than is told, or on gradients as many times larger as there are devices.
        ('bfloat16', {'enabled': True}),
        ('torch_autocast', {'enabled': True, 'dtype': 'bfloat16'}),
        ('gradient_allreduce_op', 'sum'),
    ):
        path.write_text(json.dumps({**HUGGING_FACE, key: value}))
        (problem,) = problems(f'--ds_cfgs {path}')
        assert f"sets '{key}', which" in problem


@pytest.mark.parametrize(
    ('argv', 'section', 'told'),
    [
        ('', 'bf16', 'switches bf16 off, but train_cfgs.bf16 asks for it'),
        ('', 'bfloat16', 'switches bf16 off, but train_cfgs.bf16 asks for it'),
        ('', 'torch_autocast', ''),
        ('--bf16 False', 'bf16', ''),
        ('', 'fp16', ''),
        ('--bf16 False --fp16 True', 'fp16', 'switches fp16 off, but train_cfgs.fp16 asks for it'),
        ('--bf16 False --fp16 True', 'bf16', ''),
    ],
)
def test_a_precision_that_a_deepspeed_file_switches_off(run, problems, tmp_path, argv, section, told):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps({'zero_optimization': {'stage': 2}, section: {'enabled': False}}))
    given = f'--ds_cfgs {path} {argv}'
    assert [told in problem for problem in problems(given)] == [True] if told else run(given)


class Referred(SFT):
    """With a reference that has an engine of its own."""

    reference_ds_cfgs: str | None = Field(None, description='Its DeepSpeed file.')
    reference_dtype: str = Field('auto', description='What it computes in.')


@pytest.mark.parametrize(
    ('content', 'dtype', 'told'),
    [
        ({'bf16': {'enabled': False}}, 'bf16', 'switches bf16 off, but train_cfgs.reference_dtype asks for it'),
        ({'bf16': {'enabled': False}}, 'auto', 'switches bf16 off, but train_cfgs.bf16 asks for it'),
        ({'bf16': {'enabled': False}}, 'fp32', ''),
        ({'zero_optimization': {'stage': 'auto'}}, 'auto', 'the ZeRO stage is "auto"'),
    ],
)
def test_the_deepspeed_file_of_a_reference_is_read_with_the_settings(needed, tmp_path, content, dtype, told):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(content))
    argv = [*needed, '--reference_ds_cfgs', str(path), '--reference_dtype', dtype]
    try:
        resolve('text_to_text', 'sft', Referred, {'sft': Referred}, argv, {})
        said = ''
    except SettingsError as error:
        (said,) = error.problems
    assert told in said and bool(told) is bool(said), said


@pytest.mark.parametrize(
    ('section', 'told'),
    [
        ({'stage': 'auto'}, 'the ZeRO stage is "auto", which no setting decides'),
        ({'stage': None}, 'the ZeRO stage is null'),
        ({'stage': '3'}, 'the ZeRO stage is "3"'),
        ({'stage': 4}, 'the ZeRO stage is 4'),
        ({'stage': True}, 'the ZeRO stage is true'),
        ('auto', 'zero_optimization is "auto", but must be an object'),
        (True, 'zero_optimization is true, but must be an object'),
        ({'stage': 3, 'offload_param': {'device': 'auto'}}, 'the device of offload_param is "auto"'),
        ({'stage': 2, 'offload_optimizer': 'auto'}, 'the device of offload_optimizer is "auto"'),
        ({'stage': 2, 'offload_optimizer': {'device': 'disk'}}, 'the device of offload_optimizer is "disk"'),
        ({'stage': 2, 'offload_param': {'device': 'cpu'}}, 'offload_param has no effect under ZeRO stage 2'),
        ({'offload_optimizer': {'device': 'cpu'}}, 'offload_optimizer has no effect under ZeRO stage 0'),
        ({'stage': 2, 'offload_param': {'device': 'none'}, 'offload_optimizer': {'device': 'nvme'}}, ''),
        ({'stage': 3, 'offload_param': None, 'overlap_comm': 'auto'}, ''),
    ],
)
def test_a_deepspeed_file_decides_stage_and_offload(run, problems, tmp_path, section, told):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps({'zero_optimization': section}))
    if told:
        (problem,) = problems(f'--ds_cfgs {path}')
        assert told in problem and str(path) in problem
    else:
        kept = load_deepspeed_config(run(f'--ds_cfgs {path}').cfgs.train_cfgs.ds_cfgs)
        assert kept == {'zero_optimization': {key: item for key, item in section.items() if item not in (None, 'auto')}}
        build_config(kept, micro_batch=1, accumulation=1, world_size=1, precision='bf16', max_grad_norm=1.0,
                     optimizer='adamw_torch')  # fmt: skip


def test_misspelt_keys_of_a_deepspeed_file_are_refused(problems, tmp_path):
    """DeepSpeed passes over what it does not know, and would train at stage 0."""
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps({'zero_optimisation': {'stage': 3}, 'gradient_clip': 1.0, 'comment': 'ours'}))
    found = problems(f'--ds_cfgs {path}')
    assert [problem.split(' has a key ')[1] for problem in found] == [
        "'gradient_clip', which nothing reads. Did you mean 'gradient_clipping'?",
        "'zero_optimisation', which nothing reads. Did you mean 'zero_optimization'?",
    ]


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_loss_scaling_of_a_deepspeed_file_is_in_force_in_float16_alone(precision):
    content = {'fp16': {'initial_scale_power': 7}, 'zero_optimization': {'stage': 2}}
    config = build_config(content, micro_batch=1, accumulation=1, world_size=1, precision=precision, max_grad_norm=1.0,
                          optimizer='adamw_torch')  # fmt: skip
    assert config.get('fp16') == ({'initial_scale_power': 7, 'enabled': True} if precision == 'fp16' else None)


@pytest.mark.parametrize('kind', ['config.json', 'adapter_config.json'])
def test_the_output_folder_of_a_run_stands_for_its_trained_model(run, tmp_path, kind):
    (tmp_path / 'rm' / 'slice_end').mkdir(parents=True)
    (tmp_path / 'rm' / 'slice_end' / kind).write_text('{}')
    needed = f'--train_datasets d --train_template t --output_dir {tmp_path}/o'.split()
    known = known_algorithms()

    def found(name: str, key: str, path: str):
        models = {'model_name_or_path': 'm', key: path}.items()
        return resolve(
            'text_to_text', name, known[name], known, [*needed, *(w for k, v in models for w in (f'--{k}', v))], {}
        )

    for name, key in (
        ('grpo', 'reward_model_name_or_path'), ('ppo', 'reward_critic_model_name_or_path'),
        ('saferlhf', 'cost_model_name_or_path'), ('dpo', 'reference_model_name_or_path'),
        ('rm_score', 'model_name_or_path'),
    ):  # fmt: skip
        resolved = found(name, key, f'{tmp_path}/rm')
        group = next(g for g in type(resolved.cfgs).model_fields if key in type(getattr(resolved.cfgs, g)).model_fields)
        assert getattr(getattr(resolved.cfgs, group), key) == f'{tmp_path}/rm/slice_end'
        (note,) = resolved.notes
        assert note.startswith(f'{group}.{key}: {tmp_path}/rm is the output folder of a run') and 'slice_end' in note
    assert found('dpo', 'reference_model_name_or_path', f'{tmp_path}/rm').algorithm.reference_model_name_or_path == (
        f'{tmp_path}/rm/slice_end'
    )
    (tmp_path / 'rm' / kind).write_text('{}')
    assert found('grpo', 'reward_model_name_or_path', f'{tmp_path}/rm').notes == ()


def test_known_algorithms_share_no_state():
    assert 'scale_coeff' in build_run_schema(DPO)().train_cfgs.model_dump()
    assert 'scale_coeff' not in build_run_schema(SFT)().train_cfgs.model_dump()


def test_configuration_page_is_up_to_date():
    assert document(['--check']) == 0, 'run: python -m scripts.document'
