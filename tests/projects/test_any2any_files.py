"""The YAML files of projects/any2any: what their keys and data become, and what is told of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from align_anything.core.errors import DataError, SettingsError
from tests.projects.any2any import INSTRUCTION

LEAST = {'model_name_or_path': 'Qwen/Qwen3-0.6B', 'dataset': 'rows.jsonl'}
CLIP = {'image': {'model': 'openai/clip-vit-base-patch32'}}
READS = {'input': ['text', 'image'], 'output': ['text']}
WRITES = {'input': ['text'], 'output': ['image']}
WRONG = [
    ({'modalites': {}}, "there is no key 'modalites'. Did you mean 'modalities'?"),
    ({'learning_rat': 1e-4}, "there is no key 'learning_rat'. Did you mean 'learning_rate'"),
    ({'projection': {'tpye': 'mlp'}}, "projection.tpye is no key of it. Did you mean 'type'?"),
    ({'encoders': {'image': {'freeze': True}}}, 'encoders.image.model is required'),
    ({'encoders': {'smell': {'model': 'nose'}}}, 'encoders.smell'),
    ({'modalities': {'input': ['smell']}}, 'modalities.input.0: must be'),
    ({'tokenizers': {'image': 'tokens'}}, 'tokenizers.image: must be'),
    ({'model_type': 'any2any'}, 'model_type any2any: the modalities make it standard'),
    ({'model_type': 'standard', 'encoders': CLIP}, 'the modalities make it multimodal'),
    ({'encoders': {'text': {'model': 'other'}}}, 'encoders.text.model is other'),
    ({'decoders': {'text': {'model': 'other'}}}, 'decoders.text: text is written by the language model'),
    ({'tokenizers': {'text': 'discrete'}}, 'text has the tokenizer of the language model'),
    ({'tokenizers': {'audio': 'discrete'}}, 'audio is named, but modalities neither reads nor writes it'),
    ({'decoders': CLIP, 'modalities': READS}, 'decoders.image: image is not among the outputs'),
    ({'encoders': CLIP, 'modalities': WRITES}, 'image is not among the inputs'),
    ({'special_tokens': {'image_start': '<i>'}}, 'special_tokens.image_start: image is neither read nor written'),
    ({'special_tokens': {'image_begin': '<i>'}, 'encoders': CLIP}, 'special_tokens.image_begin is no key of it'),
    ({'special_tokens': {'image_start': '<i>'}, 'encoders': CLIP}, 'image has one of image_start and image_end'),
    (
        {'special_tokens': {'image_start': '<i>', 'image_end': '</i>'}, 'modalities': READS},
        'special_tokens of image: no encoder of image is named',
    ),
    ({'vision_encoder': 'a', 'encoders': CLIP}, 'vision_encoder and encoders.image.model are two names'),
    ({'projection_type': 'linear', 'projection': {'type': 'mlp'}, 'encoders': CLIP}, 'projection_type and projection'),
    ({'projection_type': 'mlp'}, 'projection: nothing is composed'),
    (
        {'encoders': {'image': {**CLIP['image'], 'tokenizer_type': 'continuous'}}, 'tokenizers': {'image': 'discrete'}},
        'tokenizers.image and tokenizer_type of its encoder or decoder differ',
    ),
    (
        {'encoders': {'image': {**CLIP['image'], 'freeze': False}}, 'tokenizers': {'image': 'discrete'}},
        'encoders.image.freeze: image is discrete',
    ),
    (
        {'decoders': {'image': {'model': 'vq', 'freeze': False}}, 'modalities': WRITES},
        'decoders.image.freeze: a codec is never trained',
    ),
    (
        {
            'encoders': {'image': {**CLIP['image'], 'freeze': True}, 'video': {'model': 'frames', 'freeze': False}},
        },
        'encoders.video.freeze asks for train_cfgs.freeze_vision_tower False, and encoders.image.freeze for True',
    ),
    ({'use_peft': True, 'lora': {'r': 4}, 'lora_r': 8}, 'lora_r asks for lora_cfgs.r 8, and lora.r for 4'),
    ({'lora': {'bias': 'all'}}, 'lora.bias: must be'),
    ({'warmup_steps': 10}, 'warmup_steps: the warm-up is a share of the steps here'),
    ({'generate_eval_examples': True}, 'scripts/generate.py'),
    (
        {'any2any_config': {'use_modality_separators': False}, 'special_tokens': {'image_start': '<i>'}},
        'use_modality_separators is false',
    ),
    ({'any2any_config': {'modality_loss_weights': {'text': 0.5}}}, 'that of text is 1'),
    (
        {'any2any_config': {'modality_loss_weights': {'image': 0.5}}},
        'loss_weights.image: image is not written',
    ),
    ({'any2any_config': {'modality_max_lengths': {'image': 9}}}, 'modality_max_lengths.image: image is not discrete'),
]


@pytest.mark.parametrize(('keys', 'words'), WRONG)
def test_what_is_wrong_in_a_file_is_told(keys: dict[str, Any], words: str, scripts: Callable[[str], Any]) -> None:
    with pytest.raises(SettingsError) as told:
        scripts('mapping').read_values({**LEAST, **keys}, 'my.yaml')
    assert words in str(told.value)


PAIRS = [
    (['text'], ['text'], 'text_to_text'),
    (['text', 'audio'], ['text'], 'text_audio_to_text'),
    (['video', 'image', 'text'], ['text'], 'any_to_text'),
    (['text'], ['image'], 'text_to_image'),
    (['text'], ['audio'], 'text_to_audio'),
    (['text'], ['video'], 'text_to_video'),
    (['text', 'image'], ['image'], 'text_image_to_image'),
    (['text'], ['image', 'audio'], 'any_to_any'),
    (['text', 'image'], ['text', 'image'], 'text_image_to_text_image'),
    (['text'], ['text', 'image'], 'text_image_to_text_image'),
    (['text', 'image'], ['audio'], 'any_to_any'),
]


@pytest.mark.parametrize(('inputs', 'outputs', 'pair'), PAIRS)
def test_the_modalities_make_the_pair(
    inputs: list[str], outputs: list[str], pair: str, scripts: Callable[[str], Any]
) -> None:
    run = scripts('mapping').read_values({**LEAST, 'modalities': {'input': inputs, 'output': outputs}}, 'my.yaml')
    assert run.pair == pair


def test_keys_become_settings(scripts: Callable[[str], Any]) -> None:
    keys = {
        'encoders': {'image': {**CLIP['image'], 'freeze': False}, 'audio': {'model': 'openai/whisper-base'}},
        'projection': {'type': 'transformer', 'num_layers': 3},
        'special_tokens': {'audio_start': '<aud>', 'audio_end': '</aud>'},
        'freeze_llm': True,
        'unfreeze_layers_patterns': ['lm_head'],
        'use_deepspeed': True,
        'warmup_steps': 0,
        'fp16': True,
        'eval_steps': 5,
        'metric_for_best_model': None,
        'train_cfgs': {'weight_decay': 0.1},
        'lora': {'alpha': 8},
    }
    run = scripts('mapping').read_values({**LEAST, **keys}, 'my.yaml')
    assert run.pair == 'any_to_text'
    assert run.compose == {
        'image': {'encoder': 'openai/clip-vit-base-patch32', 'num_layers': 3},
        'audio': {
            'encoder': 'openai/whisper-base',
            'num_layers': 3,
            'start_token': '<aud>',
            'end_token': '</aud>',
        },
        'projector': 'transformer',
    }
    assert run.settings == {
        'train_cfgs.freeze_vision_tower': False,
        'train_cfgs.freeze_language_model': True,
        'train_cfgs.stage': 'joint',
        'train_cfgs.unfreeze_patterns': ['lm_head'],
        'train_cfgs.fp16': True,
        'train_cfgs.bf16': False,
        'train_cfgs.eval_interval': 5,
        'train_cfgs.eval_strategy': 'steps',
        'train_cfgs.weight_decay': 0.1,
        'train_cfgs.epochs': 3,
        'lora_cfgs.lora_alpha': 8,
        'logger_cfgs.output_dir': './output',
        'logger_cfgs.save_total_limit': 3,
    }
    assert run.notes == ['use_deepspeed is left out: runs are on DeepSpeed always.']


TURNS = [{'role': 'user', 'content': 'Q'}]
FOUND = [
    ({'input': {}, 'output': {}}, None, ('Any2Any_IO', {})),
    ({'conversations': TURNS}, None, ('Any2Any_Conv', {'conversation_field': 'conversations'})),
    ({'chat': TURNS, 'messages': TURNS}, 'chat', ('Any2Any_Conv', {'conversation_field': 'chat'})),
    ({'conversations': [{'from': 'human'}]}, None, ('ShareGPT', {'conversations': 'conversations'})),
    (
        {'conversations': [{'from': 'human'}], 'image': 'a.png'},
        None,
        ('ShareGPT', {'conversations': 'conversations', 'images': 'image'}),
    ),
    (
        {'conversations': TURNS, 'audio': 'a.wav'},
        None,
        ('ShareGPT', {'conversations': 'conversations', 'role_key': 'role', 'content_key': 'content'}),
    ),
    ({'messages': TURNS}, None, ('Messages', {})),
    (INSTRUCTION, None, ('Alpaca', {})),
]


@pytest.mark.parametrize(('row', 'field', 'template'), FOUND)
def test_the_first_row_tells_the_template(
    row: dict[str, Any], field: str | None, template: tuple[str, dict[str, Any]], scripts: Callable[[str], Any]
) -> None:
    assert scripts('rows').template_of(row, field, 'image') == template


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'question': 'Q', 'answer': 'A'}, 'no template is known for rows with the columns question, answer'),
        ({'conversations': ['Q']}, 'the first turn of conversations is a str'),
    ],
)
def test_rows_that_no_template_reads(row: dict[str, Any], words: str, scripts: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match=words):
        scripts('rows').template_of(row, None, None)


def test_what_is_evaluated(here: Path, scripts: Callable[[str], Any]) -> None:
    """The split that is there for it, the last tenth where it is asked for, and nothing otherwise."""
    mapping, rows = scripts('mapping'), scripts('rows')

    def settings(**keys: Any) -> tuple[dict[str, Any], list[str]]:
        run = mapping.read_values({**LEAST, 'dataset': 'tatsu-lab/alpaca', **keys}, 'my.yaml')
        rows.add_data(run)
        return {path.removeprefix('data_cfgs.'): value for path, value in run.settings.items()}, run.notes

    found, notes = settings(evaluation_strategy='steps')
    assert 'eval_datasets' not in found and 'train_cfgs.eval_strategy' not in found
    assert any('evaluation_strategy is left out: nothing is evaluated' in note for note in notes)
    found, _ = settings(eval_during_training=True)
    assert (found['train_split'], found['eval_split']) == ('train[:90%]', 'train[90%:]')
    assert (found['eval_datasets'], found['eval_template']) == ('tatsu-lab/alpaca', 'Alpaca')
    with pytest.raises(DataError, match='give eval_datasets too'):
        settings(eval_during_training=True, train_split='train[:50%]')
    with pytest.raises(DataError, match='beside train_template give train_template_kwargs'):
        settings(train_template='Alpaca', conversation_field='turns')
    rows_of = datasets.Dataset.from_list([INSTRUCTION])
    datasets.DatasetDict({'test_sft': rows_of, 'train_sft': rows_of}).save_to_disk(here / 'split')
    found, _ = settings(dataset='split')
    assert found['eval_split'] == 'test_sft' and found['train_split'] == 'train_sft'
    found, _ = settings(dataset=['split', 'tatsu-lab/alpaca'], eval_during_training=False)
    assert found['train_split'] == ['train_sft', 'train'] and found['train_template'] == ['Alpaca', 'Alpaca']
