"""Runs of the families that bring a codec of their own: what they draw is scored as it was sampled, and rewarded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from align_anything.cli.leaves import find_run
from align_anything.core.contents import content_of
from align_anything.models.codecs.base import codec_rules
from align_anything.trainers.pairs import PAIRS
from tests.models.coded import changed, released_decoder
from tests.trainers.runs import lines, run, sft, write_rows

Tiny = Callable[..., Path]
# Where nothing decodes the codes, they are the medium.
REWARDS = """
def drawn(completions):
    parts = [part for item in completions for part in item.message['content'] if part['type'] == 'image']
    assert len(parts) == len(completions) and all(item.finished for item in completions)
    return [part.get('codes', part['image']).codes.float().mean().item() for part in parts]
"""
# Pictures of Emu3 have any size, with the ends of rows in them; those of the others have 7 x 7 codes.
SIZES: dict[str, dict[str, Any]] = {'emu3': {'emit_size': '{image: [3, 2]}', 'max_new_tokens': 40}}
CODES = {'emu3': 3 * 2, 'janus': 7 * 7, 'chameleon': 7 * 7}


@pytest.mark.parametrize(
    ('family', 'stage', 'ranks'),
    [('emu3', 2, 1), ('chameleon', 2, 1), pytest.param('janus', 3, 2, marks=pytest.mark.extended), ('janus', 3, 1)],
)
def test_what_is_drawn_is_scored_as_it_was_sampled(
    family: str, stage: int, ranks: int, tiny: Tiny, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'prompt': f'Draw a house, number {n}.'} for n in range(6)])
    (tmp_path / 'rewards.py').write_text(REWARDS)
    source = decoding(tiny(family), tmp_path) if family == 'chameleon' else tiny(family)
    codec = codec_rules(source).open()
    settings = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 1,
        'per_device_train_batch_size': 2,
        'max_new_tokens': 60,
        'reward_functions': f'[{tmp_path}/rewards.py:drawn]',
        'max_steps': 2,
        'ds_cfgs': f'ds_z{stage}_config.json',
        **SIZES.get(family, {}),
    }
    argv = sft(tmp_path / 'out', source, rows, template='Prompts', **settings)
    ended = run(argv, ranks, PAIRS['text_to_image'], algorithm=find_run('text_to_image', 'grpo')[1])
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    records = [record for record in lines(tmp_path / 'out' / 'metrics.jsonl') if 'train/reward' in record]
    assert len(records) == 2 and records[0]['train/grad_norm'] > 1e-3
    for record in records:
        # Codes alone are choices.
        assert record['train/response_length'] == CODES[family]
        assert record['train/rollout_drift'] < 1e-5 and record['train/ratio'] == pytest.approx(1, abs=1e-5)
    # What was saved needs nothing of what it came from.
    (tmp_path / 'vqgan.ckpt').unlink(missing_ok=True)
    saved = codec_rules(tmp_path / 'out' / 'slice_end').open()
    assert saved.rules.fingerprint == codec.rules.fingerprint
    codes = torch.arange(7 * 7).view(1, 7, 7)
    assert content_of(saved.decode(codes)) == content_of(codec.decode(codes))


def decoding(model: Path, folder: Path) -> Path:
    """A copy of a Chameleon with the file of a decoder beside its folder."""
    vq = json.loads((model / 'config.json').read_text())['vq_config']
    weights = {f'decoder.{name}': value for name, value in released_decoder(vq).items()}
    torch.save({'state_dict': weights}, folder / 'vqgan.ckpt')
    return changed(model, folder / 'decoding', vq_config={**vq, 'decoder': '../vqgan.ckpt'})


def test_what_writes_pictures_trains_alone_where_rows_hold_some(tiny: Tiny, tmp_path: Path) -> None:
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')
    rows = write_rows(tmp_path / 'rows.jsonl', [{'question': 'Draw!', 'image': 'red.png', 'answer': 'So.'}] * 4)
    settings: dict[str, Any] = {f'freeze_{part}': True for part in ('language_model', 'vision_tower', 'mm_proj')}
    (ended,) = run(sft(tmp_path / 'no', tiny('janus'), rows, **settings), pair=PAIRS['text_image_to_text'])
    assert ended.code == 2, ended.output
    assert 'all that trains is generation, which rows of text_image_to_text never reach' in ended.output
    settings['ds_cfgs'] = 'ds_z2_config.json'
    drawn = write_rows(tmp_path / 'drawn.jsonl', [{'prompt': 'Draw!', 'image': 'red.png'}] * 4)
    argv = sft(tmp_path / 'out', tiny('janus'), drawn, template='DiffusionDB', **settings)
    (ended,) = run(argv, pair=PAIRS['text_to_image'])
    assert ended.code == 0, ended.output
    before, after = (
        load_file(folder / 'model.safetensors') for folder in (tiny('janus'), tmp_path / 'out' / 'slice_end')
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all('generation_' in name for name in moved)
