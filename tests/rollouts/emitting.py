"""A tiny language model that writes pictures, row by row, and sounds of two code books, until it ends them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from align_anything.models.codecs.base import Codec, codec_rules
from align_anything.models.declared_codes import CODECS, DECLARATION
from align_anything.models.family import FamilySpec
from align_anything.models.media_tokens import add_media_tokens
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.emitting import digits, melody
from tests.models.samples import load

SIDE = 4
# A token that chats of the model have no more use for, once their headers are written.
ROW_END = '<|end_header_id|>'


def emitting(source: Path, out: Path) -> Path:
    """Writes a tiny language model with tokens for the codes of a picture and of a sound into `out`."""
    work = out.with_name(f'.{out.name}.codecs')
    codecs = {
        'image': make_patch_codebook(work / 'image', digits()[0][:100], size=(8, 8), patch=2, entries=16),
        'audio': make_spectrum_codebook(
            work / 'audio', [melody([n, n + 1, n + 2]) for n in range(6)], entries=6, books=2
        ),
    }
    add_media_tokens(source, codecs, out, sizes={'image': (SIDE, SIDE)})
    config = json.loads((out / 'config.json').read_text())
    config[DECLARATION]['image']['row_end'] = ROW_END
    config[DECLARATION]['audio']['max_length'] = 3 * 2  # frames of two books
    (out / 'config.json').write_text(json.dumps(config))
    _make_differ(out / 'model.safetensors', load(source).embedding_rows)
    return out


def _make_differ(file: Path, first: int) -> None:
    """New tokens begin alike, so that none of them would be told from another."""
    random, state = torch.Generator().manual_seed(0), load_file(file)
    for name in ('model.embed_tokens.weight', 'lm_head.weight'):
        rows = state[name][first:]
        rows.copy_(torch.randn(rows.shape, generator=random) * state[name][:first].std())
    save_file(state, file, {'format': 'pt'})


def load_emitting(folder: Path, restricted: bool = True) -> FamilySpec:
    """The family, whose scores are among the ids that could have stood there if they are `restricted`."""
    spec = load(folder)
    assert spec.codes is not None
    spec.codes = replace(spec.codes, restricted=restricted)
    return spec


def codecs_of(folder: Path) -> dict[str, Codec]:
    """The codecs beside a checkpoint, opened."""
    return {kind: codec_rules(folder / CODECS / kind).open() for kind in ('image', 'audio')}
