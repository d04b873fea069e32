"""Inputs that cannot be used: the run ends with code 2 and says what is wrong and what to do, on every rank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.trainers.runs import IMAGE, TEXT, run, sft, text_rows, write_rows

LOST = 'weights were read before the mistake was found'
RAISING = """
from align_anything.datasets.formatters.base import BaseFormatter

class Mine(BaseFormatter):
    def format_supervised_sample(self, raw_sample):
        return raw_sample['lost'], {}
"""
CHANGING = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{{ m['content'] | replace('i', '') | replace('o', '') | replace('s', '') }}</s>\n{% endfor %}"
    '{% if add_generation_prompt %}assistant: {% endif %}'
)


@dataclass
class Case:
    """What is given, and texts of the message that must come back.

    `settings` may be a function of the folder of inputs. `loads` says that the weights must be read to find out.
    """

    settings: dict[str, Any] | Callable[[SimpleNamespace], dict[str, Any]]
    texts: list[str]
    loads: bool = False
    pair: Any = TEXT
    environment: dict[str, str] = field(default_factory=dict)


def case(*texts: str, **settings: Any) -> Case:
    return Case(settings, list(texts))


def given(make: Callable[[SimpleNamespace], dict[str, Any]], *texts: str, **more: Any) -> Case:
    return Case(make, list(texts), **more)


@pytest.fixture(scope='module')
def inputs(tiny, tmp_path_factory) -> SimpleNamespace:
    """Good and bad files: `inputs.folder / name`; models under `inputs.llama`, `inputs.llava`."""
    folder = tmp_path_factory.mktemp('inputs')
    rows = text_rows(8)
    (folder / 'a_file').write_text('')
    (folder / 'empty.jsonl').write_text('')
    (folder / 'none.json').write_text('[]')
    (folder / 'cut.json').write_text(json.dumps(rows)[:-40])
    (folder / 'cut.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"instruction": "x", "out')
    (folder / 'broken.parquet').write_bytes(b'PAR1 and then nothing')
    (folder / 'broken.py').write_text('class Mine(:\n')
    (folder / 'raising.py').write_text(RAISING)
    (folder / 'changing.jinja').write_text(CHANGING)
    (folder / 'broken.jinja').write_text('{% for m in messages %}')
    (folder / 'broken.yaml').write_text('train_cfgs: [')
    (folder / 'ds_broken.json').write_text('{"zero_optimization": ')
    (folder / 'ds_decides.json').write_text('{"fp16": {"enabled": true}}')
    write_rows(folder / 'rows.jsonl', rows)
    write_rows(folder / 'texts.jsonl', [rows[0], 'a text where a row should be'])
    write_rows(folder / 'silent.jsonl', [{**row, 'output': ''} for row in rows])
    write_rows(folder / 'half.jsonl', [{**row, 'output': row['output'] * (i % 2)} for i, row in enumerate(rows)])
    write_rows(folder / 'images.jsonl', [{**row, 'image': 'dog.png'} for row in rows])
    turns = [{'role': role, 'content': 'sun'} for role in ('user', 'assistant') * 2]
    write_rows(folder / 'turns.jsonl', [{'messages': turns}] * 4)
    llama = tiny('llama')
    _damage_models(folder, llama, tiny('llava'))
    (folder / 'saved').mkdir()
    (folder / 'saved' / 'state.json').write_text('{}')
    return SimpleNamespace(folder=folder, rows=folder / 'rows.jsonl', llama=llama, llava=tiny('llava'))


def _damage_models(folder: Path, llama: Path, llava: Path) -> None:
    def copy(name: str, source: Path = llama) -> Path:
        return Path(shutil.copytree(source, folder / name))

    (copy('no_weights') / 'model.safetensors').unlink()
    (copy('no_config') / 'config.json').unlink()
    for file in copy('no_tokenizer').glob('token*'):
        file.unlink()
    for file in copy('no_processor', llava).glob('*processor_config.json'):
        file.unlink()
    cut = copy('cut_weights') / 'model.safetensors'
    cut.write_bytes(cut.read_bytes()[:-1000])
    weights = load_file(llama / 'model.safetensors')
    few = {name: tensor for name, tensor in weights.items() if 'layers.1.mlp' not in name}
    save_file(few, copy('few_weights') / 'model.safetensors', metadata={'format': 'pt'})
    for name, change in {
        'deeper': {'num_hidden_layers': 3},
        'wider': {'intermediate_size': 999},
        'unknown_type': {'model_type': 'lama'},
    }.items():
        file = copy(name) / 'config.json'
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    shutil.copy(llama / 'model.safetensors', copy('other_architecture', llava) / 'model.safetensors')
    (folder / 'adapter').mkdir()
    (folder / 'adapter' / 'adapter_config.json').write_text('{"base_model_name_or_path": "mine/base"}')


CASES = {
    # settings
    'unknown key': case("'lerning_rate'", "Did you mean 'learning_rate'", lerning_rate=1),
    'key of the wrong type': case('train_cfgs.epochs', 'many', 'expected', epochs='many'),
    'negative rate': case('train_cfgs.learning_rate', 'greater than or equal to 0', learning_rate=-1),
    'unknown choice': case('data_cfgs.train_on', "Did you mean 'last'?", train_on='lst'),
    'two mistakes at once': case('train_cfgs.epochs', 'train_cfgs.seed', epochs='x', seed='y'),
    'no length': case('nothing would be trained', epochs=0),
    'stream without length': case('data_cfgs.streaming', 'max_steps', streaming=True),
    'both half precisions': case('train_cfgs.bf16 is on as well', bf16=True, fp16=True),
    'float16 on a CPU': case('train_cfgs.fp16', 'CPU', 'Use bf16', fp16=True),
    'no such config file': case('nowhere.yaml', config='nowhere.yaml'),
    'broken config file': given(lambda at: {'config': at.folder / 'broken.yaml'}, 'broken.yaml', 'YAML'),
    'typo in the environment': Case(
        {}, ['LERNING_RATE', 'learning_rate'], environment={'ALIGN_ANYTHING__TRAIN_CFGS__LERNING_RATE': '1'}
    ),
    'output folder under a file': given(
        lambda at: {'output_dir': at.folder / 'a_file' / 'run'}, 'logger_cfgs.output_dir', 'a_file is a file'
    ),
    'resume from nowhere': case('train_cfgs.resume', 'no such folder', 'or auto', resume='nowhere'),
    'resume from a folder that is no slice': given(
        lambda at: {'resume': at.llama}, 'not a complete slice_<step> folder', 'Complete there: none'
    ),
    'tracker that is not installed': case('wandb', 'pip install', log_type='wandb'),
    # engine
    'no such DeepSpeed file': case('ds_z4_config.json', "Did you mean 'ds_z", ds_cfgs='ds_z4_config.json'),
    'broken DeepSpeed file': given(lambda at: {'ds_cfgs': at.folder / 'ds_broken.json'}, 'ds_broken.json', 'JSON'),
    'DeepSpeed file that decides too much': given(
        lambda at: {'ds_cfgs': at.folder / 'ds_decides.json'}, "sets 'fp16'", 'train_cfgs.fp16 decides'
    ),
    'layout that eager attention cannot have': case(
        "'packed' is not possible", 'Possible: padded', layout='packed', attn_implementation='eager'
    ),
    'flash attention that is not installed': case(
        'flash-attn', 'use sdpa', attn_implementation='flash_attention_2', bf16=True
    ),
    'quantised without adapters': case('needs lora_cfgs.use_lora', use_bnb=True),
    # data
    'no such data file': case("'nowhere.jsonl' doesn't exist", 'Give a file', train_datasets='nowhere.jsonl'),
    'empty data file': given(lambda at: {'train_datasets': at.folder / 'empty.jsonl'}, 'empty.jsonl', 'no rows'),
    'empty list of rows': given(lambda at: {'train_datasets': at.folder / 'none.json'}, 'none.json', 'no rows'),
    'cut off JSON': given(lambda at: {'train_datasets': at.folder / 'cut.json'}, 'cut.json'),
    'cut off line': given(
        lambda at: {'train_datasets': at.folder / 'cut.jsonl'}, 'cut.jsonl:9: not valid JSON', 'Mend'
    ),
    'line that is no row': given(
        lambda at: {'train_datasets': at.folder / 'texts.jsonl'}, 'texts.jsonl:2: a row must be a JSON object', 'Mend'
    ),
    'broken parquet': given(lambda at: {'train_datasets': at.folder / 'broken.parquet'}, 'broken.parquet'),
    'broken save_to_disk folder': given(lambda at: {'train_datasets': at.folder / 'saved'}, 'saved', 'Save it again'),
    'no such split': case("has no split 'tran'", "Did you mean 'train'?", train_split='tran'),
    'size of zero': case('data_cfgs.train_size', train_size=0),
    'files that are not there': given(
        lambda at: {'train_datasets': at.folder, 'train_data_files': 'nope*.jsonl'}, 'nope*.jsonl'
    ),
    'weights for fewer datasets': given(
        lambda at: {'train_datasets': [str(at.rows)] * 2, 'train_weights': '[1.0]'}, 'train_weights', '1 entries for 2'
    ),
    'templates for fewer datasets': given(
        lambda at: {'train_datasets': [str(at.rows)] * 3, 'train_template': '[Alpaca, Instruction]'},
        'train_template',
        'has 2 entries for 3 datasets',
    ),
    'evaluation data without template': given(
        lambda at: {'eval_datasets': at.rows, 'eval_strategy': 'epoch'}, 'data_cfgs.eval_template', 'is required'
    ),
    'evaluation data that are not there': case(
        "'nowhere.jsonl' doesn't exist", eval_datasets='nowhere.jsonl', eval_template='Alpaca', eval_strategy='epoch'
    ),
    'unknown template': case("'Alpacca'", "Did you mean 'Alpaca'?", train_template='Alpacca'),
    'template file that is not there': case('nowhere.py:Mine', 'there is no file', train_template='nowhere.py:Mine'),
    'template file without a name': given(
        lambda at: {'train_template': at.folder / 'raising.py'}, 'raising.py:Name', 'no template in it'
    ),
    'template file without that formatter': given(
        lambda at: {'train_template': f'{at.folder}/raising.py:Mein'}, "'Mein'", "Did you mean 'Mine'?"
    ),
    'template file that is no Python': given(
        lambda at: {'train_template': f'{at.folder}/broken.py:Mine'}, 'broken.py cannot be imported', 'SyntaxError'
    ),
    'template that raises': given(
        lambda at: {'train_template': f'{at.folder}/raising.py:Mine'},
        'none of the first 8 rows', "KeyError: 'lost'", 'columns of the row: instruction, output',
    ),
    'wrong columns': case(
        "has no column 'conversations'", 'Its columns: instruction, output', 'template_kwargs',
        train_template='ShareGPT',
    ),
    'mapped column that is not there': case("'question'", train_template_kwargs='{prompt: question}'),
    'unknown template option': case("template 'Instruction'", "'promt'", train_template_kwargs='{promt: x}'),
    'all answers empty': given(
        lambda at: {'train_datasets': at.folder / 'silent.jsonl'}, 'none of the first 8 rows', 'empty answer'
    ),
    'pictures for the text pair': given(
        lambda at: {'train_datasets': at.folder / 'images.jsonl'}, "the pair 'text_to_text' takes only text"
    ),
    'image folder that is none': case('data_cfgs.image_folder', 'is not a folder', image_folder='nowhere'),
    # checkpoints
    'no such checkpoint': case('nowhere does not exist', 'Name a checkpoint folder', model_name_or_path='./nowhere'),
    'checkpoint that is a file': given(lambda at: {'model_name_or_path': at.rows}, 'is a file', 'name the folder'),
    'folder without a checkpoint': given(
        lambda at: {'model_name_or_path': at.folder / 'no_config'}, 'has no config.json'
    ),
    'adapter in place of a model': given(
        lambda at: {'model_name_or_path': at.folder / 'adapter'}, 'holds a LoRA adapter', 'Merge it first'
    ),
    'checkpoint without weights': given(lambda at: {'model_name_or_path': at.folder / 'no_weights'}, 'has no weights'),
    'cut off weights': given(
        lambda at: {'model_name_or_path': at.folder / 'cut_weights'}, 'model.safetensors is damaged', 'again'
    ),
    'checkpoint without tokenizer': given(
        lambda at: {'model_name_or_path': at.folder / 'no_tokenizer'}, 'the tokenizer or processor', 'does not load'
    ),
    'checkpoint without processor': given(
        lambda at: {'model_name_or_path': at.folder / 'no_processor'}, 'without a processor', pair=IMAGE
    ),
    'unknown architecture': given(
        lambda at: {'model_name_or_path': at.folder / 'unknown_type'}, "model_type 'lama'", "Did you mean 'llama'?"
    ),
    'text checkpoint for the image pair': Case(
        {}, ["model_type 'llama'", 'takes no image', "'text_image_to_text'"], pair=IMAGE
    ),
    'processor options for a text model': case('is a text model', processor_kwargs='{min_pixels: 4}'),
    'unknown processor option': given(
        lambda at: {'model_name_or_path': at.llava, 'processor_kwargs': '{patch_sice: 4}'},
        "has no 'patch_sice'", "Did you mean 'patch_size'?", pair=IMAGE,
    ),
    'no such chat template': case('neither a file nor the text', chat_template='nowhere.jinja'),
    'broken chat template': given(
        lambda at: {'chat_template': at.folder / 'broken.jinja'}, 'chat template', 'model_cfgs.chat_template'
    ),
    'checkpoint with weights missing': given(
        lambda at: {'model_name_or_path': at.folder / 'few_weights'}, 'Missing: ', 'layers.1.mlp', loads=True
    ),
    'deeper architecture than the weights': given(
        lambda at: {'model_name_or_path': at.folder / 'deeper'}, 'Missing: ', 'layers.2', loads=True
    ),
    'wider architecture than the weights': given(
        lambda at: {'model_name_or_path': at.folder / 'wider'}, 'Other shapes: ', '999', loads=True
    ),
    'weights of another architecture': given(
        lambda at: {'model_name_or_path': at.folder / 'other_architecture'},
        'are not those of LlavaForConditionalGeneration', loads=True, pair=IMAGE,
    ),
    # what trains
    'everything frozen': Case({'freeze_language_model': True}, ['nothing trains', 'freeze_language_model'], True),
    'pattern that fits nothing': Case(
        {'freeze_language_model': True, 'unfreeze_patterns': '[q_prj]'}, ["'q_prj' is found in no parameter"], True
    ),
    'pattern that is no expression': case("'(' is not a regular expression", unfreeze_patterns='["("]'),
    'rate for nothing': Case({'lr_groups': '{q_prj: 0.1}'}, ["lr_groups 'q_prj'", 'Components: '], True),
    'adapter target that is not there': Case(
        {'use_lora': True, 'target_modules': '[q_prj]'}, ["'q_prj'", "Did you mean 'q_proj'?"], True
    ),
    'module to save that is not there': Case(
        {'use_lora': True, 'modules_to_save': '[lm_haed]'}, ["'lm_haed'", "Did you mean 'lm_head'?"], True
    ),
    'frozen adapters': case('lora_cfgs.inference_mode', 'set it to False', use_lora=True, inference_mode=True),
    # rows that are only found out while training
    'too many rows skipped': Case(
        lambda at: {'train_datasets': at.folder / 'half.jsonl'},
        ['max_skipped_ratio=0.05 allows fewer', 'empty answer', 'half.jsonl:', 'skipped_samples.jsonl'], True,
    ),
    'length shorter than the prompts': Case(
        {'model_max_length': 4}, ['none of the first', 'can be encoded', 'the limit is 4', 'model_max_length']
    ),
    'chat template that changes answers': Case(
        lambda at: {
            'train_datasets': at.folder / 'turns.jsonl', 'train_template': 'Messages',
            'chat_template': at.folder / 'changing.jinja',
        },
        ['the chat template changes the answer', 'model_cfgs.chat_template'], True,
    ),
}  # fmt: skip


# On two ranks each ends so, as the only one does.
@pytest.mark.parametrize('ranks', [pytest.param(1, marks=pytest.mark.extended), 2])
@pytest.mark.parametrize('name', CASES)
def test_the_run_ends_with_code_2_and_a_message(inputs, tmp_path, monkeypatch, name, ranks):
    case = CASES[name]
    changes = case.settings if isinstance(case.settings, dict) else case.settings(inputs)
    for variable, value in case.environment.items():
        monkeypatch.setenv(variable, value)

    def before(rank: int) -> None:
        from align_anything.trainers.runs import token_models

        def load_model(*_: object, **__: object) -> None:
            raise AssertionError(LOST)

        if not case.loads:
            token_models.load_model = load_model

    settings = {'model_name_or_path': inputs.llama, 'train_datasets': inputs.rows, **changes}
    ended = run(sft(tmp_path, settings.pop('model_name_or_path'), settings.pop('train_datasets'), **settings),
                ranks, case.pair, before)  # fmt: skip
    everything = '\n'.join(item.output for item in ended)
    assert [item.code for item in ended] == [2] * ranks, everything
    assert 'Traceback' not in everything
    for text in case.texts:
        assert text in everything, everything
    assert not (tmp_path / 'slice_end').exists()
