"""Small models that draw and sing: digits as sixteen codes, melodies of three tones, and what judges them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align_anything.core.types import Audio
from align_anything.models.media_tokens import add_media_tokens
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.tiny import build

SIDE, PATCH, ENTRIES = 8, 2, 64
DIGITS = 'zero one two three four five six seven eight nine'.split()
TONES = 'do re mi fa sol la ti ut'.split()
PITCHES = [440, 520, 600, 680, 760, 840, 920, 1000]
VOLUMES = (0.2, 0.35, 0.5)
RATE, FRAME, NOTE = 8000, 200, 800
SIZE = (SIDE // PATCH, SIDE // PATCH)
FRAMES = 3 * NOTE // FRAME
LEARNED = 1500
"""Digits that the code book is learned from."""


def digits() -> tuple[list[Image.Image], list[int]]:
    """Returns scikit-learn's handwritten digits, 8 x 8 pixels, and what each of them is."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey = (pixels.reshape(-1, SIDE, SIDE) / 16 * 255).round().astype(np.uint8)
    return [Image.fromarray(picture).convert('RGB') for picture in grey], labels.tolist()


def read_digits(pictures: Sequence[Image.Image], half: int = 0) -> np.ndarray:
    """Returns how probable each digit is in pictures, `(pictures, 10)`, by a network that learned one `half` of them.

    What teaches a model and what judges it afterwards can so be two that never saw the same digit. Needs scikit-learn.
    """
    return _reader(half).predict_proba(_pixels(pictures))


@cache
def _reader(half: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    pictures, labels = digits()
    reader = MLPClassifier((64,), max_iter=400, tol=1e-3, random_state=half)
    return reader.fit(_pixels(pictures[half::2]), labels[half::2])


def _pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture.convert('L'), dtype=np.float64).reshape(-1) / 255 for picture in pictures])


def melody(notes: Sequence[int], volume: float = 0.5) -> Audio:
    """Returns three tones one after the other, by their numbers in `PITCHES`."""
    seconds = np.arange(NOTE) / RATE
    parts = [volume * np.sin(2 * np.pi * PITCHES[note] * seconds) for note in notes]
    return Audio(np.concatenate(parts).astype(np.float32), RATE)


def heard(sound: Audio) -> list[int]:
    """Returns the number of the tone that is loudest in each third of a melody."""
    thirds = np.array_split(sound.samples, 3)
    return [int(np.abs(np.array(PITCHES) - _peak(part, sound.rate)).argmin()) for part in thirds]


def _peak(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def drawing_model(out: str | Path, *, hidden: int = 64, layers: int = 2, family: str = 'llama', **sizes: int) -> Path:
    """Writes a model of a text `family` with tokens for digits of sixteen codes into `out`, untrained."""
    return _with_codec(Path(out), 'image', family, hidden=hidden, layers=layers, **sizes)


def singing_model(out: str | Path, *, hidden: int = 64, layers: int = 2, family: str = 'llama', **sizes: int) -> Path:
    """Writes a model of a text `family` with tokens for melodies into `out`, untrained; it ends them by itself."""
    return _with_codec(Path(out), 'audio', family, hidden=hidden, layers=layers, **sizes)


def unified_model(out: str | Path, *, hidden: int = 64, layers: int = 2, family: str = 'llama', **sizes: int) -> Path:
    """Writes a model of a text `family` with tokens for both into `out`, untrained."""
    return _with_codec(Path(out), 'both', family, hidden=hidden, layers=layers, **sizes)


def _with_codec(out: Path, kind: str, family: str, **shape: int) -> Path:
    work = out.parent / f'.{out.name}.parts'
    corpus = [f'draw the digit {word} 0123456789' for word in DIGITS] + [f'sing {" ".join(TONES)}']
    base = build(family, work / 'base', corpus=corpus, **shape)
    codecs = {}
    if kind in ('image', 'both'):
        codecs['image'] = make_patch_codebook(
            work / 'image', digits()[0][:LEARNED], size=(SIDE, SIDE), patch=PATCH, entries=ENTRIES
        )
    if kind in ('audio', 'both'):
        sounds = [melody([note] * 3, volume) for note in range(len(TONES)) for volume in VOLUMES]
        codecs['audio'] = make_spectrum_codebook(work / 'audio', sounds, entries=len(TONES) * len(VOLUMES), frame=FRAME)
    return add_media_tokens(base, codecs, out)


def write_digit_rows(folder: str | Path, rows: int = 32, *, wrong: float = 0.0, seed: int = 0, first: int = 0) -> Path:
    """Writes pictures of digits and `rows.jsonl` that asks for each and shows it as the answer; returns that file.

    They begin with number `first`: those that the code book is learned from, or from `LEARNED` on the others. So large
    a share as `wrong` is asked for by a random word. Rows also say the `digit` asked for, and hold another digit's
    picture as `rejected`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, labels = digits()
    low, high = (0, LEARNED) if first < LEARNED else (LEARNED, len(labels))
    random = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        pick = low + (first - low + number) % (high - low)
        label = int(random.integers(10)) if random.random() < wrong else labels[pick]
        other = next(at for at in (int(random.integers(low, high)) for _ in iter(int, 1)) if labels[at] != label)
        for at in (pick, other):
            if not (folder / f'{at}.png').exists():
                pictures[at].save(folder / f'{at}.png')
        lines.append(
            {
                'question': f'draw the digit {DIGITS[label]}',
                'picture': f'{pick}.png',
                'rejected': f'{other}.png',
                'digit': label,
                'messages': [
                    {'role': 'user', 'content': f'draw the digit {DIGITS[label]}'},
                    {'role': 'assistant', 'content': [{'type': 'image', 'image': f'{pick}.png'}]},
                ],
            }
        )
    file = folder / 'rows.jsonl'
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return file


def write_melody_rows(folder: str | Path, rows: int = 32, *, wrong: float = 0.0, seed: int = 0) -> Path:
    """Writes melodies and `rows.jsonl` that asks for each and has it as the answer; returns that file.

    So large a share as `wrong` of the notes is asked for by a random word. Rows also say the `notes` asked for, and
    hold another melody as `rejected`. Needs soundfile.
    """
    import soundfile

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        sung, other = random.integers(len(TONES), size=(2, 3))
        asked = np.where(random.random(3) < wrong, random.integers(len(TONES), size=3), sung)
        if (other == asked).all():
            other = (other + 1) % len(TONES)
        for name, notes in ((f'{number}.wav', sung), (f'{number}-other.wav', other)):
            soundfile.write(folder / name, melody(notes, random.choice(VOLUMES)).samples, RATE, subtype='FLOAT')
        lines.append(
            {
                'question': f'sing {" ".join(TONES[note] for note in asked)}',
                'melody': f'{number}.wav',
                'rejected': f'{number}-other.wav',
                'notes': asked.tolist(),
            }
        )
    file = folder / 'rows.jsonl'
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return file
