"""What projects/any2any says is so: its configurations, commands and data run, and wrong files are told why."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.configs.deepspeed_files import DEEPSPEED_FOLDER
from align_anything.configs.yaml_text import parse_yaml
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.emitting import digits, melody
from align_anything.testing.tiny.encoders import build_encoder
from tests.datasets.clips import clip, sound, tone
from tests.datasets.formatters.test_mixed_templates import CONV_FILE, IO_FILE
from tests.harness.once import once
from tests.trainers.runs import Ended, run, weights

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
        import os

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
