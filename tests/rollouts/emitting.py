"""A tiny language model that writes pictures and sounds as codes, by what its configuration declares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.core.types import Audio
from align_anything.models.codecs.base import Codec, codec_rules
from align_anything.models.family import FamilySpec
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from tests.models.samples import load

ENTRIES, SOUNDS, BOOKS, SIDE = 16, 8, 2, 4
MARKS = ['<img>', '</img>', '<row>', '<snd>', '</snd>']
PICTURES = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (8, 8, 3), dtype=np.uint8)) for n in range(4)]
NOISE = Audio(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 8000)


def emitting(source: Path, out: Path) -> Path:
    """Copies a tiny language model into `out` with tokens for the codes of a picture and of a sound, and codecs."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    codes = [f'<i{number}>' for number in range(ENTRIES)]
    codes += [f'<s{book}_{number}>' for book in range(BOOKS) for number in range(SOUNDS)]
    tokenizer.add_tokens([*MARKS, *codes], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    make_patch_codebook(out / 'pictures', PICTURES, size=(8, 8), patch=2, entries=ENTRIES)
    make_spectrum_codebook(out / 'sounds', [NOISE], entries=SOUNDS, books=BOOKS)
    declared: dict[str, Any] = {
        'image': {
            'codec': 'pictures',
            'tokens': '<i{}>',
            'opening': '<img>',
            'closing': '</img>',
            'row_end': '<row>',
            'size': [SIDE, SIDE],
        },
        'audio': {'codec': 'sounds', 'tokens': ['<s0_{}>', '<s1_{}>'], 'opening': '<snd>', 'closing': '</snd>'},
    }
    config = json.loads((out / 'config.json').read_text())
    (out / 'config.json').write_text(json.dumps({**config, 'media_codes': declared}))
    return out


def load_emitting(folder: Path, restricted: bool = True, begins: bool = False) -> FamilySpec:
    """The family, whose scores are among the ids that could have stood there if they are `restricted`."""
    spec = load(folder)
    assert spec.codes is not None
    spec.codes = replace(spec.codes, restricted=restricted, begins=begins)
    return spec


def codecs_of(folder: Path) -> dict[str, Codec]:
    """The codecs beside a checkpoint, opened."""
    return {'image': codec_rules(folder / 'pictures').open(), 'audio': codec_rules(folder / 'sounds').open()}
