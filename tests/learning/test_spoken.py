"""A tiny CSM learns to sing notes of unequal length, and to stop, in all of its books: asked by transformers alone.

What it sings is compared with what the codec makes of the notes, code by code: a codec of random weights decodes noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, CsmForConditionalGeneration

from align_anything.core.types import Audio
from align_anything.models.codecs.base import codec_rules
from align_anything.testing.emitting import TONES
from align_anything.testing.tiny import build
from align_anything.testing.tiny.csm import BOOKS, RATE
from align_anything.trainers.pairs import PAIRS
from tests.trainers.runs import sft, succeed, write_rows

STEPS = {'csm': 160}
REQUIRED, BY_CHANCE = 0.9, 0.4
PITCHES = dict(zip(TONES, (220, 330, 500, 750, 1100, 1700), strict=False))
PHRASES = ('sing {}', 'please sing {} now', 'a {} please', 'now a {}', 'let {} be sung')
ASKED = 'please sing a {} now'
PAIR = PAIRS['text_to_audio']


def sung(note: str) -> Audio:
    """A note, the longer the higher it is."""
    time = np.arange(RATE * (4 + list(PITCHES).index(note)) * 2 // 25) / RATE
    return Audio((0.5 * np.sin(2 * np.pi * PITCHES[note] * time)).astype(np.float32), RATE)


def write_notes(folder: Path) -> Path:
    import soundfile

    folder.mkdir()
    for note in PITCHES:
        soundfile.write(folder / f'{note}.wav', sung(note).samples, RATE, subtype='FLOAT')
    rows = [{'text': phrase.format(note), 'audio': f'{note}.wav'} for note in PITCHES for phrase in PHRASES]
    return write_rows(folder / 'rows.jsonl', rows)


def answers(model: Path, asked: Sequence[str]) -> list[Tensor]:
    """The codes `(frames, books)` up to the end that a checkpoint writes, the likeliest ones."""
    plain, processor = CsmForConditionalGeneration.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    found = []
    for text in asked:
        turn = [{'role': '0', 'content': [{'type': 'text', 'text': text}]}]
        inputs = processor.apply_chat_template(turn, tokenize=True, return_dict=True)
        how = {'do_sample': False, 'depth_decoder_do_sample': False, 'max_new_tokens': 16}
        (codes,) = plain.generate(**inputs, **how)
        ends = (codes == 0).all(-1).nonzero().flatten().tolist()
        found.append(codes[: min([*ends, len(codes)])])
    return found


def agreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """The share of codes that are as expected, by book; of sounds of another length none."""
    shares = [
        (own == other).float().mean(0) if own.shape == other.shape else torch.zeros(BOOKS)
        for own, other in zip(found, expected, strict=True)
    ]
    return torch.stack(shares).mean(0)


@pytest.mark.extended
@pytest.mark.timeout(600)
def test_it_learns_all_books_of_notes_and_where_they_end(tmp_path: Path) -> None:
    rows = write_notes(tmp_path / 'notes')
    model = build('csm', tmp_path / 'model', corpus=[phrase.format(note) for note in PITCHES for phrase in PHRASES])
    settings = {'max_steps': STEPS['csm'], 'epochs': 1000, 'per_device_train_batch_size': 15, 'learning_rate': 3e-3}
    succeed(sft(tmp_path / 'out', model, rows, template='TTS', lr_scheduler_type='cosine', **settings), 1, PAIR)
    codec = codec_rules(model).open()
    expected = [codes.t() for codes in codec.encode([sung(note) for note in PITCHES])]
    found = answers(tmp_path / 'out' / 'slice_end', [ASKED.format(note) for note in PITCHES])
    right, others = agreement(found, expected), agreement(found, [*expected[1:], expected[0]])
    assert float(right.min()) >= REQUIRED, right
    assert float(others.max()) <= BY_CHANCE, others
