"""The steps of `make demo` around the training itself; scripts/demo/run.sh calls them in order.

    python scripts/demo/digits.py prepare DIR    images, questions, a small model, and how well it does untrained
    python scripts/demo/digits.py check DIR      how well it does trained; exit code 1 when that is below 90 %

`prepare` shows what a dataset of one's own looks like; `check` uses transformers alone, as any user of the trained
model would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WORDS = 'zero one two three four five six seven eight nine'.split()
QUESTIONS = (
    'Which digit is this?',
    'What number is written here?',
    'Read the digit in the picture.',
    'Name the handwritten digit.',
)
HELD_OUT = 300
COPIES = 4
SIDE = 28
BATCH = 100
REQUIRED = 0.9
SEED = 0

Row = dict[str, Any]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description='The steps of `make demo` around the training.')
    parser.add_argument('step', choices=['prepare', 'check'])
    parser.add_argument('folder', type=Path)
    arguments = parser.parse_args()
    quieten()
    return {'prepare': prepare, 'check': check}[arguments.step](arguments.folder)


def quieten() -> None:
    """Keeps progress bars and guesses of libraries out of what a person reads."""
    os.environ.setdefault('DS_ACCELERATOR', 'cpu')
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def prepare(folder: Path) -> int:
    """Writes `data/`, `untrained/` and `before.json` in place of those of an earlier demo."""
    for name in ('data', 'untrained', 'run'):
        shutil.rmtree(folder / name, ignore_errors=True)
    data = folder / 'data'
    training, held_out = write_data(data)
    say(f'{training} images to learn from, {held_out} held out: {data}')

    from align_anything.testing.tiny import build

    corpus = [*QUESTIONS, *(f'ASSISTANT: {word}' for word in WORDS)] * 20
    model = build('llava', folder / 'untrained', image_size=SIDE, hidden=128, vision_hidden=128, corpus=corpus)
    result, _ = measure(model, read_rows(data / 'held_out.json'), data)
    (folder / 'before.json').write_text(json.dumps(result))
    say(f'a LLaVA of {result["parameters"]:,} random weights: {model}')
    say(f'untrained it picks the right word for {result["picked"]:.1%} of the held-out images')
    return 0


def check(folder: Path) -> int:
    """Measures `run/slice_end`, writes `digits.png`, answers one question; returns 1 when too few answers are right."""
    data, model = folder / 'data', folder / 'run' / 'slice_end'
    rows = read_rows(data / 'held_out.json')
    before = json.loads((folder / 'before.json').read_text())
    after, answers = measure(model, rows, data)
    (folder / 'after.json').write_text(json.dumps(after))
    draw(folder / 'digits.png', rows, answers, data, before, after, read_rows(folder / 'run' / 'metrics.jsonl'))

    say('', f'held-out accuracy over {len(rows)} images       before    after')
    say(f'  picks the right one of ten words    {before["picked"]:>6.1%}   {after["picked"]:>6.1%}')
    say(f'  writes exactly the right word       {before["written"]:>6.1%}   {after["written"]:>6.1%}')
    question, digit = rows[0]['conversations'][0]['value'].replace('<image>\n', ''), rows[0]['image']
    say('', f'{data / digit}', f'  > {question}', f'  {answers[0]}')
    say('', f'trained model: {model}', f'images, answers and curve: {folder / "digits.png"}')
    if after['written'] < REQUIRED:
        say('', f'FAILED: {after["written"]:.1%} is below {REQUIRED:.0%}.')
        return 1
    return 0


def write_data(folder: Path) -> tuple[int, int]:
    """Writes the digits of scikit-learn as images with questions; returns how many to learn from and held out.

    The two files are in the ShareGPT form: a list of rows with `conversations` and the path of an `image`, relative to
    the file. What is held out is drawn once; the others are drawn again too, turned and shifted a little.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    (folder / 'images').mkdir(parents=True)
    chance = random.Random(SEED)
    order = list(range(len(digits.target)))
    chance.shuffle(order)
    held_out = [(number, 0) for number in order[:HELD_OUT]]
    learned = [(number, copy) for number in order[HELD_OUT:] for copy in range(COPIES)]
    for part, pictures in (('held_out', held_out), ('train', learned)):
        rows = []
        for number, copy in pictures:
            name = f'images/{number:04d}-{copy}.png'
            turn, shift = (chance.uniform(-12, 12), [chance.randint(-2, 2) for _ in 'xy']) if copy else (0, (0, 0))
            draw_digit(digits.images[number], turn, shift).save(folder / name)
            turns = [
                {'from': 'human', 'value': f'<image>\n{chance.choice(QUESTIONS)}'},
                {'from': 'gpt', 'value': WORDS[digits.target[number]]},
            ]
            rows.append({'image': name, 'conversations': turns})
        (folder / f'{part}.json').write_text(json.dumps(rows, indent=1))
    return len(learned), len(held_out)


def draw_digit(pixels: Any, turn: float, shift: Sequence[int]) -> Any:
    """Returns 8 × 8 pixels of 0 to 16 as a larger image, turned by degrees and shifted by pixels."""
    from PIL import Image

    picture = Image.fromarray((pixels * 255 / 16).astype('uint8')).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return picture.rotate(turn, Image.Resampling.BICUBIC, translate=tuple(shift))


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a `.json` or `.jsonl` file."""
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == '.jsonl' else json.loads(text)


def measure(model_path: Path, rows: Sequence[Row], folder: Path) -> tuple[dict[str, float], list[str]]:
    """Asks the model in `model_path` about `rows`; returns figures and its answers.

    `picked` is the share of rows for which the right word is the most probable of the ten, so chance is 10 %; `written`
    the share for which the model, generating freely, writes that word and stops.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(model_path).eval()
    processor = AutoProcessor.from_pretrained(model_path)
    pieces = processor.tokenizer([f' {word}' for word in WORDS], add_special_tokens=False)['input_ids']
    firsts = torch.tensor([piece[0] for piece in pieces])
    assert len(set(firsts.tolist())) == len(WORDS), 'two words begin with the same token'

    picked, answers = 0, []
    for part in batches(rows):
        inputs = processor(
            images=[open_picture(folder / row['image']) for row in part],
            text=[prompt(processor, row) for row in part],
            padding=True,
            padding_side='left',
            return_tensors='pt',
        )
        with torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
        best = out.scores[0][:, firsts].argmax(dim=1).tolist()
        picked += sum(WORDS[choice] == truth(row) for choice, row in zip(best, part, strict=True))
        replies = out.sequences[:, inputs['input_ids'].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(replies, skip_special_tokens=True)]
    written = sum(answer == truth(row) for answer, row in zip(answers, rows, strict=True))
    figures = {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'picked': picked / len(rows),
        'written': written / len(rows),
    }
    return figures, answers


def prompt(processor: Any, row: Row) -> str:
    """Returns the question of `row` as the checkpoint's chat template writes it."""
    question = row['conversations'][0]['value'].replace('<image>\n', '')
    content = [{'type': 'image'}, {'type': 'text', 'text': question}]
    return processor.apply_chat_template([{'role': 'user', 'content': content}], add_generation_prompt=True)


def truth(row: Row) -> str:
    return row['conversations'][1]['value']


def open_picture(path: Path) -> Any:
    from PIL import Image

    return Image.open(path).convert('RGB')


def batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def draw(
    path: Path,
    rows: Sequence[Row],
    answers: Sequence[str],
    folder: Path,
    before: dict[str, float],
    after: dict[str, float],
    metrics: Sequence[Row],
) -> None:
    """Draws held-out images with their answers, the wrong ones in red, above the loss and the accuracy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout='constrained')
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    top.suptitle('held-out digits and what the trained model says')
    for axis, row, answer in zip(top.subplots(4, 10).flatten(), rows, answers, strict=False):
        axis.imshow(open_picture(folder / row['image']))
        axis.set_title(answer, fontsize=9, color='black' if answer == truth(row) else 'red')
        axis.axis('off')

    loss, accuracy = bottom.subplots(1, 2, width_ratios=[2, 1])
    for prefix, color in (('train', 'tab:blue'), ('eval', 'tab:orange')):
        points = [(record['step'], record[f'{prefix}/loss']) for record in metrics if f'{prefix}/loss' in record]
        loss.plot(*zip(*points, strict=True), color=color, label={'train': 'learned', 'eval': 'held out'}[prefix])
    loss.set(title='loss', xlabel='optimizer step', yscale='log')
    loss.grid(alpha=0.3)
    loss.legend()
    bars = accuracy.bar(['before', 'after'], [before['picked'], after['picked']], color=['tab:gray', 'tab:green'])
    accuracy.bar_label(bars, fmt='{:.1%}')
    accuracy.axhline(0.1, color='black', linestyle=':', linewidth=1)
    accuracy.set(title='held-out accuracy (dotted: chance)', ylim=(0, 1.1))
    figure.savefig(path, dpi=110)


def say(*lines: str) -> None:
    """Writes lines at once, also into a pipe."""
    sys.stdout.write(''.join(f'{line}\n' for line in lines))
    sys.stdout.flush()


if __name__ == '__main__':
    sys.exit(main())
