"""What projects/any2any says is so: its configurations, commands and data run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.configs.deepspeed_files import DEEPSPEED_FOLDER
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import SettingsError
from tests.datasets.formatters.test_mixed_templates import CONV_FILE, IO_FILE
from tests.projects.any2any import (
    ANY,
    AUDIO_CODEC,
    CONFIGS,
    IMAGE_CODEC,
    LLAVA,
    PROJECT,
    README,
    ROOT,
    SMALL,
    TRAINING,
    blocks,
    call,
)
from tests.trainers.runs import lines, weights


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


WATCHED = """{
  "input": {"modalities": ["text", "video"], "text": "What moves?", "video": "path/to/video.mp4"},
  "output": {"modalities": ["text"], "text": "A square."}
}"""


@pytest.fixture
def any_to_any(here: Path) -> Path:
    """The folder of a run of the any-to-any configuration on both JSON forms."""
    # A data file is a list of the rows that the documents show.
    (here / 'custom/multimodal_conversations/train.json').write_text(f'[{", ".join([IO_FILE, IO_FILE, WATCHED])}]')
    ended = call('scripts/train_any2any.py', ANY, *SMALL.split(), '--output_dir', 'voice')
    assert ended.code == 0, ended.output
    for said in (
        'read by the template Any2Any_IO',
        f'video stands as codes of {IMAGE_CODEC}',
        'image goes in as discrete tokens, so that its encoder openai/clip-vit-large-patch14 is not used',
        f'audio stands as codes of {AUDIO_CODEC}',
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
        'video': ('<vid>', '</vid>'),
    }
    # An image is sixteen codes always, a video so many for each second.
    assert codes['image']['size'] == [4, 4] and 'size' not in codes['video']
    assert config['model_type'] == 'qwen2' and (made / 'codecs/video/pictures/config.json').is_file()
    trained = weights(any_to_any / 'slice_end')
    assert {'embed_tokens', 'lm_head'} <= {part for name in trained for part in name.split('.')}
    assert not lines(any_to_any / 'skipped_samples.jsonl')
    for kind, suffix in (('audio', '.wav'), ('image', '.png')):
        ended = call(
            *('scripts/generate.py', 'voice', 'custom/multimodal_conversations', '--out', kind, '--begin', kind),
            *('--rows', '2', '--size', 'audio=5'),
        )
        assert ended.code == 0, ended.output
        answers = lines(here / kind / 'completions.jsonl')
        assert [answer['media'] for answer in answers] == [[f'completions/00000000/{row}_1{suffix}'] for row in (0, 1)]
        assert all(answer['response'] == f'<{kind}>' and answer['finished'] for answer in answers)
        assert 'Describe this image with voice' in answers[0]['prompt']
    assert Image.open(here / 'image/completions/00000000/0_1.png').size == (8, 8)
    assert (here / 'audio/completions/00000000/0_1.wav').read_bytes()[:4] == b'RIFF'


def test_media_go_in_continuously_and_come_out_discrete(here: Path) -> None:
    rows = [
        {'conversations': [{'role': 'user', 'content': 'Again.', 'image': 'path/to/image.jpg'}, answer]}
        for answer in (
            {'role': 'assistant', 'content': 'Here.', 'image': 'path/to/image.jpg'},
            {'role': 'assistant', 'content': 'No.'},
        )
    ]
    rows.append(json.loads(CONV_FILE))
    (here / 'custom/multimodal_conversations/validation.json').write_text(json.dumps(rows))
    (here / 'custom/multimodal_conversations/train.json').write_text(json.dumps(rows * 2))
    (here / 'own.yaml').write_text("""
        model_name_or_path: "Qwen/Qwen3-0.6B"
        encoders: {image: {model: "google/siglip-base-patch16-224"}}
        decoders: {image: {model: "deepseek-community/Janus-Pro-1B"}}
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
        {'engine': 'fsdp', 'fsdp_reshard_after_forward': True, 'bf16': True, 'fp16': False},
    ),
    'by number': (
        {'ACCELERATE_USE_FSDP': 'true', 'FSDP_SHARDING_STRATEGY': '2', 'FSDP_OFFLOAD_PARAMS': 'true'},
        {'engine': 'fsdp', 'fsdp_reshard_after_forward': False, 'fsdp_cpu_offload': True},
    ),
    'fsdp 2': (
        {'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_RESHARD_AFTER_FORWARD': 'false'},
        {'engine': 'fsdp', 'fsdp_reshard_after_forward': False},
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
    assert bool(notes) == bool(expected.keys() & {'ds_cfgs', 'engine'})
    assert all('accelerate launch' in note for note in notes)


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
    assert ('FSDP FULL_SHARD is FSDP2 here', 'deepspeed_configs/zero3.json says')[number - 1] in done.stderr
    assert ('in force: FSDP2 over', 'in force: ZeRO stage 3, bf16')[number - 1] in done.stderr
    assert (here / 'done/slice_end/adapter_model.safetensors').is_file()


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
