"""Whole runs of pipelines that edit: what they read of a prompt beside its text, and rows that lack it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.trainers.denoising import REWARDS, metrics, named, offline, online
from tests.trainers.runs import succeed, write_rows
from tests.trainers.test_denoising_runs import changed

Tiny = Callable[..., Path]
EDITS = PAIRS['text_image_to_image']
SHOWN = 'answers: image, prompt: edit_prompt, images: input_image'
EDITED = {'template': 'Instruction', 'train_template_kwargs': f'{{{SHOWN}, response: edited_image}}', 'resolution': 32}
PAIRED = {
    **EDITED,
    'template': 'Preference',
    'train_template_kwargs': f'{{{SHOWN}, chosen: edited_image, rejected: worse_image}}',
}
ASKED = {**EDITED, 'template': 'Prompts', 'train_template_kwargs': '{prompt: edit_prompt, images: input_image}'}
HOW: dict[str, dict[str, Any]] = {
    'sft': EDITED,
    'dpo': PAIRED,
    'kto': {**PAIRED, 'per_device_train_batch_size': 4},
    'grpo': {**ASKED, 'guidance_scale': 2.0},
    'nft': ASKED,
    'online_dpo': ASKED,
}
FAMILIES = 'flux_kontext flux_fill qwen_image_edit qwen_image_edit_plus'.split()
# Each algorithm with one family, and each family with one algorithm.
RUNS = [
    *((family, name) for family in ('flux_kontext', 'qwen_image_edit') for name in HOW),
    *((family, name) for family in ('flux_fill', 'qwen_image_edit_plus') for name in ('sft', 'grpo')),
]
FIRST = [
    ('flux_kontext', 'dpo'),
    ('flux_kontext', 'nft'),
    ('flux_fill', 'sft'),
    ('qwen_image_edit', 'grpo'),
    ('qwen_image_edit_plus', 'sft'),
]


def picture(folder: Path, name: str, seed: int, size: tuple[int, int] = (40, 40)) -> str:
    """Writes a picture of noise, and its mask beside it; returns its name."""
    random = numpy.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), numpy.uint8)).save(folder / name)
    mask = Image.new('L', size)
    mask.paste(255, (size[0] // 2, 0, *size))
    mask.save(folder / f'mask_{name}')
    return name


def edits(folder: Path, count: int = 4, size: tuple[int, int] = (40, 40)) -> list[dict[str, Any]]:
    """Rows as those of InstructPix2Pix, with a worse edit too."""
    return [
        {
            'edit_prompt': f'make it number {at}',
            'input_image': picture(folder, f'from_{at}.png', at, size),
            'edited_image': picture(folder, f'to_{at}.png', 100 + at, size),
            'worse_image': picture(folder, f'worse_{at}.png', 200 + at, size),
        }
        for at in range(count)
    ]


def masked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, their images to edit with a mask."""
    return [row | {'input_image': [row['input_image'], f'mask_{row["input_image"]}']} for row in rows]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rows.jsonl` with edits, `masked.jsonl` with those of images with masks, and `rewards.py`."""
    folder = tmp_path_factory.mktemp('edits')
    rows = edits(folder)
    write_rows(folder / 'rows.jsonl', rows)
    write_rows(folder / 'masked.jsonl', masked(rows))
    (folder / 'rewards.py').write_text(REWARDS)
    return folder


def rows_for(family: str, folder: Path) -> Path:
    return folder / ('masked.jsonl' if family == 'flux_fill' else 'rows.jsonl')


@pytest.mark.parametrize(('family', 'name'), in_tiers(RUNS, FIRST))
def test_every_algorithm_trains_edits(family: str, name: str, tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / 'run', online if named(name).generates else offline
    how = {'max_steps': 2, **HOW[name]}
    succeed(argv(out, tiny(family), rows_for(family, folder), **how), 1, EDITS, algorithm=named(name))
    norms = metrics(out, 'train/grad_norm')
    assert norms and all(norm > 0 for norm in norms) and changed(tiny(family), out)
    if name == 'grpo':
        assert metrics(out, 'train/ratio')[0] == pytest.approx(1, abs=1e-6)
        assert metrics(out, 'train/rollout_drift')[0] == 0
