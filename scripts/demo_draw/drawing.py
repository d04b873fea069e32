"""The steps of `make demo-draw` around the training, and the reward of it; scripts/demo_draw/run.sh calls them.

    python scripts/demo_draw/drawing.py prepare DIR    pictures of digits, half of them named wrongly, and a small model
    python scripts/demo_draw/drawing.py check DIR      what the models draw; exit code 1 when too few digits are right

One half of scikit-learn's digits teaches the classifier that rewards, the other half the one that judges in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS, WRONG = 1300, 0.5
ASKED = 30
"""How often each digit is asked for in the end."""
SHOWN = 8
REQUIRED = 0.8
STAGES = {
    'untrained': 'untrained',
    'supervised/slice_end': 'after supervised training on rows of which half are wrong',
    'rewarded/slice_end': 'after rewards',
}
NOTE = 'A green frame is around what a classifier reads as the digit asked for; it had no part in the training.'


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description='The steps of `make demo-draw` around the training.')
    parser.add_argument('step', choices=['prepare', 'check'])
    parser.add_argument('folder', type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault('DS_ACCELERATOR', 'cpu')
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return {'prepare': prepare, 'check': check}[arguments.step](arguments.folder)


def prepare(folder: Path) -> int:
    """Writes `data/` and `untrained/` in place of those of an earlier demo."""
    from align_anything.testing.emitting import drawing_model, write_digit_rows

    for name in ('data', 'untrained', 'supervised', 'rewarded'):
        shutil.rmtree(folder / name, ignore_errors=True)
    rows = write_digit_rows(folder / 'data', ROWS, wrong=WRONG)
    say(f'{ROWS} pictures of digits, {WRONG:.0%} of them asked for by a random word: {rows}')
    say(f'a model of random weights with tokens for pictures: {drawing_model(folder / "untrained", **SHAPE)}')
    return 0


SHAPE = {'hidden': 96, 'layers': 3}


def drawn_digit(completions: Sequence[Any]) -> list[float]:
    """The reward: how probable the digit asked for is in the picture, to the classifier of the first half."""
    from align_anything.testing.emitting import read_digits

    pictures = [part['image'] for completion in completions for part in completion.message['content']]
    wanted = [completion.meta['digit'] for completion in completions]
    return [float(seen[digit]) for seen, digit in zip(read_digits(pictures), wanted, strict=True)]


def check(folder: Path) -> int:
    """Writes `drawn.html` and `drawn.json`, and says how many pictures are right; returns 1 when they are too few."""
    drawn = {stage: draw(folder / stage) for stage in STAGES}
    shares = {stage: sum(right for _, right in pictures) / len(pictures) for stage, pictures in drawn.items()}
    (folder / 'drawn.json').write_text(json.dumps(shares))
    (folder / 'drawn.html').write_text(page(drawn, shares, parameters(folder / 'untrained')), encoding='utf-8')
    say('', f'pictures that show the digit asked for, of {10 * ASKED}')
    for stage, words in STAGES.items():
        say(f'  {words:<60}{shares[stage]:>6.1%}')
    say('', f'trained model: {folder / "rewarded/slice_end"}', f'what was drawn: {folder / "drawn.html"}')
    last = shares['rewarded/slice_end']
    if last < REQUIRED:
        say('', f'FAILED: {last:.1%} is below {REQUIRED:.0%}.')
        return 1
    return 0


def draw(model: Path) -> list[tuple[Any, bool]]:
    """Returns pictures of each digit `ASKED` times, in order, and whether the classifier of the other half agrees."""
    from align_anything.testing.emitting import DIGITS, read_digits
    from align_anything.testing.sampling import sample_media

    digits = [digit for digit in range(10) for _ in range(ASKED)]
    pictures = sample_media(model, 'image', [f'draw the digit {DIGITS[digit]}' for digit in digits])
    found = read_digits(pictures, half=1).argmax(1).tolist()
    return [(picture, seen == digit) for picture, seen, digit in zip(pictures, found, digits, strict=True)]


def page(drawn: Mapping[str, Sequence[tuple[Any, bool]]], shares: Mapping[str, float], weights: int) -> str:
    """Returns the page with pictures of each stage side by side, a line for each digit."""
    from align_anything.reporting.comparison import Made, comparison_page
    from align_anything.testing.emitting import DIGITS

    models = [f'{STAGES[stage]}: {shares[stage]:.0%} right' for stage in drawn]
    made = {
        word: [[Made(*one) for one in pictures[digit * ASKED : digit * ASKED + SHOWN]] for pictures in drawn.values()]
        for digit, word in enumerate(DIGITS)
    }
    return comparison_page(f'Asked for a digit, a model of {weights:,} weights draws', NOTE, 'image', models, made)


def parameters(model: Path) -> int:
    """Returns how many weights a checkpoint holds."""
    from safetensors import safe_open

    with safe_open(model / 'model.safetensors', 'pt') as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())


def say(*lines: str) -> None:
    """Writes lines at once, also into a pipe."""
    sys.stdout.write(''.join(f'{line}\n' for line in lines))
    sys.stdout.flush()


if __name__ == '__main__':
    sys.exit(main())
