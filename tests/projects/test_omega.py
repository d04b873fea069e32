"""The commands of projects/omega do what its README says, on a hub in a folder and models of a few thousand weights."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from align_anything.trainers.pairs import PAIRS
from tests.harness.once import once
from tests.trainers.runs import run

PROJECT = Path(__file__).resolve().parents[2] / 'projects' / 'omega'
DIM = 1024
HEADER = '<|start_header_id|>{}<|end_header_id|>\n\n'
SMALL = '--max_steps 2 --gradient_accumulation_steps 1 --per_device_train_batch_size 2 --num_workers 0 --log_type none'
SMALL += ' --save_interval 1 --bf16 False --ds_cfgs ds_z0_config.json --eval_size 4'
COLOURS = 'red green blue'.split()


def vector(colour: str, number: int) -> list[float]:
    """What an encoder might make of something of a colour, the first numbers telling it."""
    generator = numpy.random.default_rng(number)
    made = generator.normal(size=DIM) * 0.1
    made[COLOURS.index(colour)] += 8
    return made.tolist()


def rows(count: int, make: Callable[[str, int], dict[str, Any]], start: int = 0) -> Dataset:
    return Dataset.from_list([make(COLOURS[number % 3], number) for number in range(start, start + count)])


def video(colour: str, number: int) -> dict[str, Any]:
    return {'video_id': str(number), 'description': f'A {colour} thing.', 'video_embed': vector(colour, number)}


def caption(colour: str, number: int) -> dict[str, Any]:
    return {'caption': f'Something {colour}.', 'ib_embed': vector(colour, number), 'clip_embed': [0.5] * 8}


def talk(colour: str, number: int) -> dict[str, Any]:
    turns = [{'from': 'human', 'value': '<image>\nWhich colour?'}, {'from': 'gpt', 'value': colour}]
    return {'caption': turns, 'ib_embed': vector(colour, number)}


def text(colour: str, number: int) -> dict[str, Any]:
    start = f'<|begin_of_text|>{HEADER.format("user")}Say {colour}.<|eot_id|>{HEADER.format("assistant")}'
    return {'input': start, 'output': f'{colour}<|eot_id|>', 'source': 'airoboros'}


def _write_hub(folder: Path, language_model: Path) -> None:
    shutil.copytree(language_model, folder / 'meta-llama/Meta-Llama-3-8B-Instruct')
    (folder / 'meta-llama/Meta-Llama-3-8B-Instruct/original').mkdir()
    (folder / 'meta-llama/Meta-Llama-3-8B-Instruct/original/params.json').write_text('{}')
    data = {
        **{
            f'omegalabsinc/omega-multimodal/default/train/01HX{number}.parquet': rows(12, video, 12 * number)
            for number in range(4)
        },
        'nimapourjafar/coco_llava_instruct/output.parquet': rows(9, talk),
        'nimapourjafar/vision_flan/output.parquet': rows(9, talk),
        'nimapourjafar/sam_llava/output.parquet': rows(9, caption),
        'jondurbin/bagel-llama-3-v1.0/bagel-input-output-v1.0.parquet': rows(512, text),
    }
    for name, dataset in data.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(folder / name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that the test stands in."""
    shutil.copytree(PROJECT, tmp_path / 'omega')
    monkeypatch.chdir(tmp_path / 'omega')
    monkeypatch.syspath_prepend(str(tmp_path / 'omega'))
    return tmp_path / 'omega'


@pytest.fixture
def hub(tiny: Callable[..., Path], shared_cache: Path) -> Path:
    """A folder with the repositories that are downloaded, made small."""
    return once(shared_cache, 'omega-hub', lambda folder: _write_hub(folder, tiny('llama')))


def commands(*words: str) -> list[list[str]]:
    """The commands that make would run."""
    done = subprocess.run(['make', '--dry-run', *words], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.replace('\\\n', ' ').splitlines()]


def python(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a script in this process, since its imports would take their seconds once more; returns its exit code."""
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_targets_make_from_a_download_to_an_upload(
    project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(*words: str) -> str:
        for command in commands(*words):
            assert command[0] == 'python'
            assert python(*command[1:], monkeypatch=monkeypatch) == 0, capsys.readouterr()
        return capsys.readouterr().out

    make('download-everything', f'DOWNLOAD=--source {hub} --shards 2')
    shards = [path.name for path in sorted(Path('ds').rglob('01HX*'))]
    assert shards == ['01HX1.parquet', '01HX2.parquet', '01HX3.parquet']
    assert Path('ds/held_out/omega_multimodal/default/train/01HX1.parquet').is_file()
    (command,) = commands('finetune-x1', f'OPTIONS={SMALL}')
    launched = 'deepspeed --num_gpus 1 --module align_anything.trainers.any_to_text.sft'.split()
    assert command[: len(launched)] == launched
    (done,) = run(command[len(launched) :], pair=PAIRS['any_to_text'])
    assert done.code == 0, done.output
    folder = Path('output_checkpoints/experiment_1')
    assert 'skipped' not in done.output and not (folder / 'skipped_samples.jsonl').exists()
    (composed,) = folder.glob('composed-*')
    before, after = (load_file(made / 'model.safetensors') for made in (composed, folder / 'slice_end'))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if 'projector' in name} <= changed
    assert {name.split('.')[-2] for name in changed if 'projector' not in name} == {'q_proj', 'v_proj'}
    answer = make('gen', 'PROMPT=Say red.')
    assert answer.strip()
    captioned = make('mmgen')
    assert captioned.count('in the row: A ') == 3
    numpy.save('v.npy', numpy.array([vector('red', 0)], numpy.float32))
    assert make('mmgen', 'VIDEO=v.npy') and make('mmgen', 'IMAGE=v.npy', 'PROMPT=What is in {image} here?')
    measured = json.loads(make('eval'))
    assert measured['rows'] == 12 and measured['skipped'] == 0
    assert 0 <= measured['choice_accuracy'] <= 1 and 0 < measured['loss'] < 20
    for target in ('eval_baseline', 'eval_finetune'):
        assert json.loads(make(target, 'EVAL=--size 4')).keys() == {'loss', 'rows', 'skipped'}
    listed = make('upload', 'REPO=me/model --dry-run')
    assert 'slice_end/model.safetensors' in listed and '- bittensor' in listed and 'state' not in listed.split('---')[0]
