"""What trains a pipeline in align-anything trains one here: its files of settings, and the names of its modules."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.cli.leaves import find_run
from tests.configs.incumbent_files import file_of
from tests.harness.pairwise import in_tiers
from tests.scripts.test_shell_scripts import ROWS, write_media
from tests.trainers.runs import lines, run, succeed

MODELS = {'text_to_image': 'sd15', 'text_to_audio': 'audioldm', 'text_to_video': 'text_to_video_sd'}
TEMPLATES = {
    ('text_to_image', 'sft'): 'DiffusionDB',
    ('text_to_image', 'dpo'): 'Pickapic',
    ('text_to_audio', 'sft'): 'WavCaps',
    ('text_to_audio', 'dpo'): 'AA_T2A',
    ('text_to_video', 'sft'): 'Webvid',
    ('text_to_video', 'dpo'): 'SafeSora',
}
FIRST = [('text_to_image', 'dpo'), ('text_to_audio', 'sft')]


@pytest.fixture
def argv(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Makes the command line of one of its scripts, for a tiny model, rows, and the file that its trainer reads."""

    def made(pair: str, name: str, *more: str, **changed: object) -> list[str]:
        write_media(tmp_path)
        template = TEMPLATES[pair, name]
        (tmp_path / 'rows.jsonl').write_text(f'{json.dumps(ROWS[template])}\n' * 4)
        if pair != 'text_to_audio':
            changed['resolution'] = 32
        if pair == 'text_to_video':
            changed['sample_frames'] = 4
        (tmp_path / 'theirs.yaml').write_text(file_of(pair, name, **changed))
        given = {
            'model_name_or_path': tiny(MODELS[pair]),
            'train_datasets': tmp_path / 'rows.jsonl',
            'train_template': template,
            'train_split': 'train',
            'output_dir': tmp_path / 'out',
            'video_folder' if pair == 'text_to_video' else 'audio_folder': tmp_path,
        }
        if pair == 'text_to_image':
            del given['audio_folder']
        words = [word for key, value in given.items() for word in (f'--{key}', str(value))]
        small = '--max_steps 2 --num_workers 0 --log_type none --gradient_accumulation_steps 1'.split()
        return ['--config', f'{tmp_path}/theirs.yaml', *words, *small, *more]

    return made


@pytest.mark.parametrize(('pair', 'name'), in_tiers(list(TEMPLATES), FIRST))
def test_its_files_train_a_pipeline(pair: str, name: str, argv: Callable[..., list[str]], tmp_path: Path) -> None:
    # Its own file of this one asks for adapters, which AudioLDM of diffusers does not load.
    merged = ('--save_full_model', 'True') if (pair, name) == ('text_to_audio', 'dpo') else ()
    chosen, algorithm = find_run(pair, name)
    text = succeed(argv(pair, name, *merged), pair=chosen, algorithm=algorithm)
    assert 'model_cfgs.trust_remote_code' in text and 'special_tokens is left out' in text
    records = [record for record in lines(tmp_path / 'out' / 'metrics.jsonl') if 'train/loss' in record]
    assert [record['step'] for record in records] == [1, 2]
    adapts = (pair, name) == ('text_to_image', 'dpo')
    saved = {path.name for path in (tmp_path / 'out' / 'slice_end').iterdir()}
    assert ('pytorch_lora_weights.safetensors' if adapts else 'model_index.json') in saved


@pytest.mark.parametrize('pair', MODELS)
@pytest.mark.parametrize('name', ['sft', 'dpo'])
def test_its_modules_are_here(pair: str, name: str) -> None:
    theirs = importlib.import_module(f'align_anything.trainers.{pair}.{name}_diffusion')
    assert theirs.main is importlib.import_module(f'align_anything.trainers.{pair}.{name}').main


def test_adapters_of_it_that_no_pipeline_would_load_are_refused(argv: Callable[..., list[str]]) -> None:
    pair, algorithm = find_run('text_to_audio', 'dpo')
    ended = run(argv('text_to_audio', 'dpo'), pair=pair, algorithm=algorithm)
    assert ended[0].code == 2 and 'save_full_model' in ended[0].output


def test_code_of_a_pipeline_is_not_run(argv: Callable[..., list[str]]) -> None:
    """Neither is it asked for in vain."""
    pair, algorithm = find_run('text_to_image', 'sft')
    ended = run(argv('text_to_image', 'sft', '--trust_remote_code', 'True'), pair=pair, algorithm=algorithm)
    assert ended[0].code == 2 and 'model_cfgs.trust_remote_code (command line' in ended[0].output
