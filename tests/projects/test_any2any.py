"""What projects/any2any says is so: its configurations, commands and data run, and wrong files are told why."""

from __future__ import annotations

import http.client
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import datasets
import pytest
from PIL import Image

from align_anything.configs.deepspeed_files import DEEPSPEED_FOLDER
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import DataError, SettingsError
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.emitting import digits, melody
from align_anything.testing.tiny.encoders import build_encoder
from tests.datasets.clips import clip, sound, tone
from tests.datasets.formatters.test_mixed_templates import CONV_FILE, IO_FILE
from tests.harness.once import once
from tests.trainers.runs import Ended, lines, run, weights

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / 'projects' / 'any2any'
README = (PROJECT / 'README.md').read_text()
SCRIPTS = ('checkpoint', 'generate', 'launcher', 'mapping', 'rows', 'train_any2any', 'train_multimodal', 'web_form')
CONFIGS = {
    'configs/sft/simple_hf_training.yaml': 0,
    'configs/sft/llava_style_training.yaml': 1,
    'configs/any2any/anygpt_style_training.yaml': 2,
}
LLAVA, ANY = list(CONFIGS)[1:]
PARTS = {
    'Qwen/Qwen2.5-7B-Instruct': 'qwen2',
    'Qwen/Qwen3-0.6B': 'qwen3',
    'microsoft/DialoGPT-medium': 'gpt2',
    'openai/clip-vit-base-patch32': 'clip',
    'openai/clip-vit-large-patch14': 'clip',
    'google/siglip-base-patch16-224': 'siglip',
    'openai/whisper-base': 'whisper',
    'microsoft/videoMAE-base': 'videomae',
}
"""Tiny checkpoints in the folders that the configurations name, where they are looked for before the hub."""
SMALL = '--max_steps 1 --gradient_accumulation_steps 1 --num_workers 0 --log_type none --ds_cfgs ds_z0_config.json'
INSTRUCTION = {'instruction': 'Name a colour.', 'input': '', 'output': 'Red.', 'text': 'Name a colour. Red.'}
LLAVA_ROW = {
    'id': '000000033471',
    'image': 'red.png',
    'conversations': [
        {'from': 'human', 'value': '<image>\nWhat is the colour?'},
        {'from': 'gpt', 'value': 'It is red.'},
    ],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


COMMANDS = [shlex.split(command, comments=True) for command in blocks('bash')[0].replace('\\\n', ' ').splitlines()]
TRAINING = [words for words in COMMANDS if 'PYTHONPATH' in ' '.join(words)]


def write_rows(folder: Path, rows: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='session')
def workplace(tiny: Callable[..., Path], shared_cache: Path) -> Path:
    """A copy of the project with all checkpoints and data that its configurations name. Do not write into it."""

    def make(folder: Path) -> None:
        shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns('__pycache__', 'output'))
        for name, kind in PARTS.items():
            if kind in ('qwen2', 'qwen3', 'gpt2'):
                shutil.copytree(tiny(kind), folder / name)
            else:
                build_encoder(kind, folder / name)
        make_patch_codebook(folder / 'BAAI/Emu3-VisionTokenizer', digits()[0][:99], size=(8, 8), patch=2, entries=16)
        make_spectrum_codebook(folder / 'kyutai/mimi', [melody([note, 2, note]) for note in range(8)], entries=8)
        write_rows(folder / 'tatsu-lab/alpaca', [INSTRUCTION] * 4)
        write_rows(folder / 'liuhaotian/LLaVA-Instruct-150K', [LLAVA_ROW] * 4)
        Image.new('RGB', (40, 30), 'red').save(folder / 'liuhaotian/LLaVA-Instruct-150K' / 'red.png')
        media = folder / 'custom/multimodal_conversations' / 'path/to'
        media.mkdir(parents=True)
        Image.new('RGB', (40, 30), 'red').save(media / 'image.jpg')
        (media / 'response.wav').write_bytes(sound(tone(0.4)))
        (media / 'video.mp4').write_bytes(clip([number * 10 for number in range(8)]))

    return once(shared_cache, 'any2any', make)


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what is in `workplace`, and room for a run."""
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'custom').unlink()
    shutil.copytree(workplace / 'custom', tmp_path / 'custom')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`scripts('mapping')` is the script of that name."""
    monkeypatch.syspath_prepend(PROJECT / 'scripts')
    yield lambda name: __import__(name)
    # Their names are common ones, which other tests may mean otherwise.
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def call(script: str, *argv: str, env: dict[str, str] | None = None) -> Ended:
    """Runs a script as `python script …` does, in a process of its own."""

    def before(rank: int) -> None:
        os.environ.update(env or {})
        sys.argv = [script, *argv]
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name='__main__')
        sys.exit(0)

    (ended,) = run([], before=before)
    return ended


def test_the_configurations_are_those_of_the_readme() -> None:
    shown = blocks('yaml')
    assert [(PROJECT / name).read_text() for name in CONFIGS] == shown[:3]
    assert blocks('json') == [CONV_FILE, IO_FILE]
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (PROJECT / target).exists(), target


@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_files_of_a_command_are_there(number: int) -> None:
    words = TRAINING[number]
    assert words[0].startswith('PYTHONPATH=') and words[1:3] == ['poetry', 'run']
    files = [word for word in words if word.endswith(('.yaml', '.py'))]
    assert len(files) > 1 and all((PROJECT / file).is_file() for file in files), files


def test_the_other_files_fit_the_package() -> None:
    ours = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    poetry = tomllib.loads((PROJECT / 'pyproject.toml').read_text())
    assert poetry['project']['requires-python'].startswith(ours['requires-python'])
    assert (PROJECT / poetry['tool']['poetry']['dependencies'][ours['name']]['path']).resolve() == ROOT
    for stage in (2, 3):
        file = PROJECT / 'deepspeed_configs' / f'zero{stage}.json'
        assert json.loads(file.read_text()) == json.loads((DEEPSPEED_FOLDER / f'ds_z{stage}_config.json').read_text())


def test_the_simplest_command_trains(here: Path) -> None:
    script, config = TRAINING[0][4:]
    ended = call(script, config, *SMALL.split())
    assert ended.code == 0, ended.output
    assert 'tatsu-lab/alpaca is read by the template Alpaca' in ended.output
    adapter = json.loads((here / 'my_model/slice_end/adapter_config.json').read_text())
    assert adapter['r'] == 64 and adapter['lora_alpha'] == 128
    assert {name.rsplit('.', 1)[-1] for name in adapter['target_modules']} == {'q_proj', 'v_proj'}


def test_the_llava_style_configuration_trains(here: Path) -> None:
    ended = call('scripts/train_multimodal.py', LLAVA, *SMALL.split())
    assert ended.code == 0, ended.output
    assert "q_proj, v_proj, k_proj, o_proj are c_attn, attn.c_proj in a 'gpt2'" in ended.output
    assert 'per_device_eval_batch_size is left out: nothing is evaluated' in ended.output
    trained = weights(here / 'output/slice_end')
    # Beside the adapters the projector is trained in full.
    assert any('multi_modal_projector' in name for name in trained) and any('c_attn.lora_A' in name for name in trained)
    made = parse_yaml((here / 'output/align_anything.yaml').read_text())
    assert made['model_cfgs']['compose'] == {
        'language_model': 'microsoft/DialoGPT-medium',
        'image': {'encoder': 'openai/clip-vit-base-patch32'},
        'projector': 'mlp',
    }
    assert made['train_cfgs']['stage'] == 'joint' and made['train_cfgs']['freeze_vision_tower'] is True


@pytest.fixture
def any_to_any(here: Path) -> Path:
    """The folder of a run of the any-to-any configuration on both JSON forms."""
    # A data file is a list of the rows that the documents show.
    (here / 'custom/multimodal_conversations/train.json').write_text(f'[{", ".join([IO_FILE] * 4)}]')
    ended = call('scripts/train_any2any.py', ANY, *SMALL.split(), '--output_dir', 'voice')
    assert ended.code == 0, ended.output
    for said in (
        'read by the template Any2Any_IO',
        'video goes in through microsoft/videoMAE-base: no codec of videos is named',
        'image goes in as discrete tokens, so that its encoder openai/clip-vit-large-patch14 is not used',
        'audio is written with the codes of kyutai/mimi',
    ):
        assert said in ended.output, ended.output
    return here / 'voice'


def test_the_any_to_any_configuration_trains_and_answers_in_files(any_to_any: Path, here: Path) -> None:
    (made,) = any_to_any.glob('with-tokens-*')
    config = json.loads((made / 'config.json').read_text())
    codes = config['media_codes']
    assert {kind: (codes[kind]['opening'], codes[kind]['closing']) for kind in codes} == {
        'image': ('<img>', '</img>'),
        'audio': ('<aud>', '</aud>'),
    }
    # An image is sixteen codes always, and videos go in by a tower.
    assert codes['image']['size'] == [4, 4] and list(config['media']) == ['video']
    trained = weights(any_to_any / 'slice_end')
    assert {'embed_tokens', 'lm_head'} <= {part for name in trained for part in name.split('.')}
    assert not lines(any_to_any / 'skipped_samples.jsonl')
    for kind, suffix in (('audio', '.wav'), ('image', '.png')):
        ended = call(
            *('scripts/generate.py', 'voice', 'custom/multimodal_conversations', '--out', kind, '--begin', kind),
            *('--rows', '2', '--max_frames', '5'),
        )
        assert ended.code == 0, ended.output
        answers = lines(here / kind / 'completions.jsonl')
        assert [answer['media'] for answer in answers] == [[f'0-0{suffix}'], [f'1-0{suffix}']]
        assert all(answer['response'] == f'<{kind}>' and answer['finished'] for answer in answers)
        assert 'Describe this image with voice' in answers[0]['prompt']
    assert Image.open(here / 'image/0-0.png').size == (8, 8)
    assert (here / 'audio/0-0.wav').read_bytes()[:4] == b'RIFF'


def test_media_go_in_continuously_and_come_out_discrete(here: Path) -> None:
    rows = [
        {'conversations': [{'role': 'user', 'content': 'Again.', 'image': 'path/to/image.jpg'}, answer]}
        for answer in (
            {'role': 'assistant', 'content': 'Here.', 'image': 'path/to/image.jpg'},
            {'role': 'assistant', 'content': 'No.'},
        )
    ]
    (here / 'custom/multimodal_conversations/validation.json').write_text(json.dumps(rows))
    (here / 'custom/multimodal_conversations/train.json').write_text(json.dumps(rows * 2))
    (here / 'own.yaml').write_text("""
        model_name_or_path: "Qwen/Qwen3-0.6B"
        encoders: {image: {model: "google/siglip-base-patch16-224"}}
        decoders: {image: {model: "BAAI/Emu3-VisionTokenizer"}}
        modalities: {input: [text, image], output: [text, image]}
        tokenizers: {image: continuous}
        dataset: custom/multimodal_conversations
        train_projection_only: true
        any2any_config: {modality_loss_weights: {image: 0.5}}
        output_dir: drawn
    """)
    more = ['--bf16', 'False', '--lr_warmup_ratio', '0']
    ended = call('scripts/train_any2any.py', 'own.yaml', *SMALL.split(), *more)
    assert ended.code == 0, ended.output
    assert 'evaluated on validation: these rows are held out by the data' in ended.output
    assert any('eval/loss' in record for record in lines(here / 'drawn/metrics.jsonl'))
    made = parse_yaml((here / 'drawn/align_anything.yaml').read_text())
    assert made['data_cfgs']['emitted_loss_weights'] == {'image': 0.5}
    trained = weights(here / 'drawn/slice_end')
    (before,) = (here / 'drawn').glob('with-tokens-*')
    changed = {name for name, tensor in weights(before).items() if not tensor.equal(trained[name].to(tensor.dtype))}
    assert changed and all('multi_modal_projector' in name for name in changed)


LAUNCHED = {
    'fsdp': (
        {'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': 'FULL_SHARD', 'ACCELERATE_MIXED_PRECISION': 'bf16'},
        {'ds_cfgs': 'ds_z3_config.json', 'bf16': True, 'fp16': False},
    ),
    'by number': (
        {'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': '2', 'FSDP_OFFLOAD_PARAMS': 'true'},
        {'ds_cfgs': 'ds_z2_offload_config.json'},
    ),
    'fsdp 2': (
        {'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_RESHARD_AFTER_FORWARD': 'false'},
        {'ds_cfgs': 'ds_z2_config.json'},
    ),
    'none': ({'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': 'NO_SHARD'}, {'ds_cfgs': 'ds_z0_config.json'}),
    'stage': (
        {
            'ACCELERATE_USE_DEEPSPEED': 'true',
            'ACCELERATE_DEEPSPEED_ZERO_STAGE': '3',
            'ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE': 'cpu',
            'ACCELERATE_GRADIENT_ACCUMULATION_STEPS': '4',
            'ACCELERATE_GRADIENT_CLIPPING': '0.5',
        },
        {'ds_cfgs': 'ds_z3_offload_config.json', 'gradient_accumulation_steps': 4, 'max_grad_norm': 0.5},
    ),
    'file': (
        {'ACCELERATE_USE_DEEPSPEED': 'true', 'ACCELERATE_DEEPSPEED_CONFIG_FILE': 'deepspeed_configs/zero2.json'},
        {'ds_cfgs': 'deepspeed_configs/zero2.json'},
    ),
    'processes alone': ({'ACCELERATE_MIXED_PRECISION': 'no'}, {}),
}


@pytest.mark.parametrize('name', LAUNCHED)
def test_what_a_launcher_asks_for(name: str, scripts: Callable[[str], Any]) -> None:
    environ, expected = LAUNCHED[name]
    settings, notes = scripts('launcher').launched(environ)
    assert settings == expected
    assert len(notes) == ('ds_cfgs' in expected) and all('accelerate launch' in note for note in notes)


@pytest.mark.parametrize(
    ('environ', 'words'),
    [
        ({'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': '9'}, "fsdp_sharding_strategy '9' is none of"),
        (
            {'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': 'NO_SHARD', 'FSDP_OFFLOAD_PARAMS': 'true'},
            'ZeRO stage 0 offloads nothing',
        ),
        ({'ACCELERATE_MIXED_PRECISION': 'fp8'}, 'fp8 is not known'),
        ({'ACCELERATE_USE_MEGATRON_LM': 'true'}, 'take DeepSpeed'),
    ],
)
def test_what_a_launcher_cannot_have(environ: dict[str, str], words: str, scripts: Callable[[str], Any]) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        scripts('launcher').launched(environ)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize('number', [1, 2])
def test_a_command_of_accelerate_trains(number: int, here: Path) -> None:
    (here / 'custom/multimodal_conversations/train.json').write_text(f'[{", ".join([IO_FILE] * 4)}]')
    words = TRAINING[number][3:]
    assert words[:3] == ['accelerate', 'launch', '--config_file']
    # Its environment, without what a run that started the tests may have left there.
    command = [sys.executable, '-m', 'accelerate.commands.accelerate_cli', *words[1:]]
    more = [word for word in SMALL.split() if 'ds_' not in word]
    done = subprocess.run([*command, *more, '--output_dir', 'done'], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ('FSDP FULL_SHARD is ZeRO stage 3', 'deepspeed_configs/zero3.json says')[number - 1] in done.stderr
    assert 'in force: ZeRO stage 3, bf16' in done.stderr
    assert (here / 'done/slice_end/adapter_model.safetensors').is_file()


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
    (['text'], ['video'], 'any_to_any'),
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


def test_a_script_says_what_is_wrong_and_ends(here: Path) -> None:
    (here / 'wrong.yaml').write_text('model_name_or_path: "Qwen/Qwen3-0.6B"\ndataset: tatsu-lab/alpaca\nuse_pefd: 1\n')
    for argv, words in (
        (['wrong.yaml'], "wrong.yaml: there is no key 'use_pefd'. Did you mean 'use_peft'?"),
        (['missing.yaml'], 'missing.yaml'),
        ([], 'the YAML file comes first'),
        (['configs/sft/simple_hf_training.yaml', '--max_stesp', '1'], "Did you mean 'max_steps'"),
    ):
        ended = call('scripts/train_multimodal.py', *argv)
        assert ended.code == 2 and words in ended.output, ended.output


@pytest.fixture
def page(tmp_path: Path, scripts: Callable[[str], Any]) -> Iterator[tuple[Callable[..., tuple[int, str]], Path]]:
    """`ask(fields)` sends a form, `ask()` opens the page; and the file that it writes."""
    file = tmp_path / 'configs' / 'my.yaml'
    server = scripts('web_form').make_server(file, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(fields: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=10)
        if fields is None:
            connection.request('GET', '/', headers=headers)
        else:
            kind = {'Content-Type': 'application/x-www-form-urlencoded'}
            connection.request('POST', '/', urlencode(fields, doseq=True), {**kind, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    yield ask, file
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_form_writes_a_file_that_can_be_read(page: Any, scripts: Callable[[str], Any]) -> None:
    ask, file = page
    status, shown = ask()
    token = re.search(r'name="token" value="([^"]+)"', shown).group(1)
    assert status == 200 and 'modalities.output' in shown and 'Peak learning rate.' in shown
    fields = {
        'token': token,
        'model_name_or_path': 'Qwen/Qwen3-0.6B',
        'dataset': 'one.jsonl, two.jsonl',
        'modalities.input': ['text', 'image'],
        'modalities.output': ['text'],
        'encoders.image.model': 'openai/clip-vit-base-patch32',
        'use_peft': 'true',
        'lora.target_modules': 'q_proj, v_proj',
        'learning_rate': '1e-4',
        'more': 'seed: 3',
    }
    status, shown = ask({**fields, 'learning_rate': 'quick<b>'})
    assert status == 200 and 'is written' in shown and 'quick<b>' not in shown
    status, shown = ask(fields)
    assert parse_yaml(file.read_text()) == {
        'model_name_or_path': 'Qwen/Qwen3-0.6B',
        'dataset': ['one.jsonl', 'two.jsonl'],
        'modalities': {'input': ['text', 'image'], 'output': ['text']},
        'encoders': {'image': {'model': 'openai/clip-vit-base-patch32'}},
        'use_peft': True,
        'lora': {'target_modules': ['q_proj', 'v_proj']},
        'learning_rate': 1e-4,
        'seed': 3,
    }
    assert scripts('mapping').read_file(file).pair == 'text_image_to_text'


def test_the_form_refuses_what_is_wrong_and_who_is_not_asked(page: Any, scripts: Callable[[str], Any]) -> None:
    ask, file = page
    token = re.search(r'name="token" value="([^"]+)"', ask()[1]).group(1)
    asked = {'token': token, 'model_name_or_path': 'm', 'dataset': 'd'}
    for fields, words in (
        ({'model_name_or_path': ''}, 'model_name_or_path is required'),
        ({'more': 'sed: 3'}, 'there is no key'),
        ({'more': '- seed'}, 'write a key and its value'),
        ({'more': 'a: ['}, 'further keys'),
        ({'more': 'dataset: e'}, 'dataset has a field of its own'),
        ({'tokenizers.image': 'discrete'}, 'image is named, but modalities'),
    ):
        status, shown = ask({**asked, **fields})
        assert status == 200 and 'class="wrong"' in shown and words in shown, shown[:500]
    assert ask({**asked, 'token': 'x'})[0] == 403
    assert ask(asked, Host='elsewhere.example')[0] == 403
    assert ask({**asked, 'more': 'x' * 2**17})[0] == 413
    assert not file.exists()
    file.write_text('')
    with pytest.raises(SettingsError, match='exists; name another file'):
        scripts('web_form').make_server(file, 0)
