"""The rows that `scripts/gpu_check.sh` trains on, and the table of what its runs reached.

python -m scripts.gpu_steps rows FOLDER
python -m scripts.gpu_steps table FOLDER_OF_RUNS
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROWS, FIRST = 512, 3
"""Rows of each kind; and the first step that counts, behind those in which everything is slow once."""
SHOWN = {'tokens/s': 'tokens_per_second', 'TFLOP/s': 'tflops', 'MFU': 'mfu', 's a step': 'seconds_per_step'}
REWARDS = """
def brief(completions):
    return [-float(item.length) for item in completions]
"""


def write_rows(folder: Path) -> None:
    """Writes texts of 50 to 1,500 words, prompts, pictures with questions, and a reward."""
    order = random.Random(0)
    words = [f'{consonant}{vowel}' for consonant in 'bdfgklmnprst' for vowel in 'aeiou']

    def text(low: int, high: int) -> str:
        return ' '.join(order.choices(words, k=order.randint(low, high)))

    texts = [{'instruction': text(20, 500), 'output': text(30, 1000)} for _ in range(ROWS)]
    (folder / 'text.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in texts))
    prompts = [{'prompt': row['instruction']} for row in texts]
    (folder / 'prompts.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in prompts))
    generator = np.random.default_rng(0)
    pictures = []
    for number in range(16):
        pixels = generator.integers(0, 255, (448, 448, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    for number in range(ROWS):
        asked = [{'type': 'image', 'image': f'{number % 16}.png'}, {'type': 'text', 'text': text(5, 50)}]
        turns = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': text(20, 300)}]
        pictures.append({'messages': turns})
    (folder / 'image.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in pictures))
    (folder / 'rewards.py').write_text(REWARDS)


def table(runs: Path) -> list[str]:
    """Returns a Markdown table: the median of each run's steps but the first ones; `-` for what a run does not tell."""
    lines = ['| run | ' + ' | '.join(SHOWN) + ' |', '|---' * (len(SHOWN) + 1) + '|']
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        files = [file for file in (folder / 'metrics.jsonl', folder / 'timings.jsonl') if file.exists()]
        steps = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        cells = []
        for name in SHOWN.values():
            found = [step[key] for step in steps for key in step if key.rpartition('/')[2] == name][FIRST:]
            cells.append(f'{statistics.median(found):.4g}' if found else '-')
        lines.append(f'| {folder.name} | ' + ' | '.join(cells) + ' |')
    return lines


def main() -> None:
    """Reads the command line."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == 'rows':
        write_rows(folder)
    else:
        sys.stdout.write('\n'.join(table(folder)) + '\n')


if __name__ == '__main__':
    main()
