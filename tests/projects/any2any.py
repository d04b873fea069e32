"""The project any2any as its tests see it: where it lies, what its README shows, and its scripts as commands."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from tests.trainers.runs import Ended, run

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
IMAGE_CODEC, AUDIO_CODEC = 'deepseek-community/Janus-Pro-1B', 'facebook/encodec_24khz'
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
