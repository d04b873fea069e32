"""The steps of `make demo-paint` around the training, and the reward of it; scripts/demo_paint/run.sh calls them.

    python scripts/demo_paint/painting.py prepare DIR    pictures of coloured shapes, prompts, and a small pipeline
    python scripts/demo_paint/painting.py check DIR      what the models paint; exit code 1 when too little is right

Half of the captions name a shape and no colour. There the choice is the model's, until rewards make it red.
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

PICTURES = 2000
LIKED = 'red'
"""The colour that is wanted where a prompt names none."""
ASKED, SHOWN = 16, 8
"""How often each prompt is asked in the end, and how many of these pictures the page has."""
REQUIRED = 0.75
UNTRAINED, SUPERVISED, REWARDED = 'untrained', 'supervised/slice_end', 'rewarded/slice_end'
STAGES = {UNTRAINED: 'untrained', SUPERVISED: 'after supervised training', REWARDED: 'after rewards'}
HEADS = {
    'named': 'colour as named',
    'plain': f'{LIKED} if none is',
    'reward': 'mean reward',
    'shape': 'shape as asked',
}
NOTE = (
    f'A green frame is around what has the colour asked for, and around what is {LIKED} where none is: such a picture '
    'has the reward 1, others 0. Each picture of a line begins from noise of its own, the same for all models.'
)
Painted = dict[str, list[tuple[Any, bool]]]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description='The steps of `make demo-paint` around the training.')
    parser.add_argument('step', choices=['prepare', 'check'])
    parser.add_argument('folder', type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault('DS_ACCELERATOR', 'cpu')
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    return {'prepare': prepare, 'check': check}[arguments.step](arguments.folder)


def prepare(folder: Path) -> int:
    """Writes `pictures/`, `prompts.jsonl` and `untrained/` in place of those of an earlier demo."""
    from align_anything.testing.shapes import build_painter, write_shapes

    for name in ('pictures', 'untrained', 'supervised', 'rewarded'):
        shutil.rmtree(folder / name, ignore_errors=True)
    say(f'{PICTURES} pictures of coloured shapes, with captions: {write_shapes(folder / "pictures", PICTURES)}')
    (folder / 'prompts.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in prompts()))
    say(f'a pipeline of random weights: {build_painter(folder / UNTRAINED)}')
    return 0


def prompts(liked: str = LIKED) -> list[dict[str, str]]:
    """Returns rows that ask for shapes and say which colour is wanted: in every second, which names none, the liked."""
    from align_anything.testing.shapes import COLOURS, SHAPES

    named = [{'prompt': f'a {colour} {shape}', 'wanted': colour} for shape in SHAPES for colour in COLOURS]
    plain = [{'prompt': f'a {shape}', 'wanted': liked} for shape in SHAPES for _ in COLOURS]
    return [row for two in zip(plain, named, strict=True) for row in two]


def painted_as_wanted(completions: Sequence[Any]) -> list[float]:
    """The reward: 1 for a picture in the colour that its row wants, else 0."""
    pictures = [part['image'] for completion in completions for part in completion.message['content']]
    wanted = [completion.meta['wanted'] for completion in completions]
    return [float(is_right(picture, colour)) for picture, colour in zip(pictures, wanted, strict=True)]


def is_right(picture: Any, wanted: str) -> bool:
    """Returns whether what stands out of the ground of a picture is of a colour."""
    from align_anything.testing.shapes import colour_of

    return colour_of(picture) == wanted


def check(folder: Path) -> int:
    """Writes `painted.html` and `painted.json`, and says how much is as wanted; returns 1 when that is too little."""
    painted = {stage: paint(folder, stage) for stage in STAGES}
    shares = {stage: shares_of(made) for stage, made in painted.items()}
    (folder / 'painted.json').write_text(json.dumps(shares))
    (folder / 'painted.html').write_text(page(painted, shares), encoding='utf-8')
    asked = f'of {ASKED * len(painted[UNTRAINED])} pictures'
    say('', f'{asked:30}' + ''.join(f'{head:>18}' for head in HEADS.values()))
    for stage, words in STAGES.items():
        say(f'  {words:28}' + ''.join(f'{in_words(key, shares[stage]):>18}' for key in HEADS))
    say('', f'trained adapter: {folder / REWARDED}', f'what was painted: {folder / "painted.html"}')
    last = shares[REWARDED]
    short = [f'{HEADS[key]}: {last[key]:.1%}' for key in ('named', 'plain') if last[key] < REQUIRED]
    if short:
        say('', f'FAILED: {", ".join(short)}, which is below {REQUIRED:.0%}.')
        return 1
    return 0


def paint(folder: Path, stage: str) -> Painted:
    """Returns by prompt what the model of a stage paints, with whether it is of the colour that is wanted."""
    from align_anything.testing import shapes

    wanted = {row['prompt']: row['wanted'] for row in prompts()}
    asked = [prompt for prompt in wanted for _ in range(ASKED)]
    model, adapter = (SUPERVISED, folder / REWARDED) if stage == REWARDED else (stage, None)
    pictures = shapes.paint(folder / model, asked, adapter=adapter)
    made: Painted = {prompt: [] for prompt in wanted}
    for prompt, picture in zip(asked, pictures, strict=True):
        made[prompt].append((picture, is_right(picture, wanted[prompt])))
    return made


def shares_of(made: Painted) -> dict[str, float]:
    """Returns which shares of the pictures are as `HEADS` says, and the mean reward over the rows of `prompts`."""
    from align_anything.testing.shapes import NAMED, PLAIN, shape_of

    def share(of: Sequence[bool]) -> float:
        return sum(of) / len(of)

    named, plain = (share([right for prompt in group for _, right in made[prompt]]) for group in (NAMED, PLAIN))
    shape = share([shape_of(picture) == prompt.split()[-1] for prompt, own in made.items() for picture, _ in own])
    return {'named': named, 'plain': plain, 'reward': (named + plain) / 2, 'shape': shape}


def in_words(key: str, shares: Mapping[str, float]) -> str:
    """Returns a figure of `shares_of` as it is shown."""
    return f'{shares[key]:.2f}' if key == 'reward' else f'{shares[key]:.1%}'


def page(painted: Mapping[str, Painted], shares: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the page with pictures of each stage side by side, a line for each prompt."""
    from align_anything.reporting.comparison import Made, comparison_page

    models = [
        '\n'.join([words, *(f'{head}: {in_words(key, shares[stage])}' for key, head in HEADS.items())])
        for stage, words in STAGES.items()
    ]
    made = {
        prompt: [[Made(*one) for one in own[prompt][:SHOWN]] for own in painted.values()]
        for prompt in painted[UNTRAINED]
    }
    return comparison_page('A small model learns to paint', NOTE, 'image', models, made)


def say(*lines: str) -> None:
    """Writes lines at once, also into a pipe."""
    sys.stdout.write(''.join(f'{line}\n' for line in lines))
    sys.stdout.flush()


if __name__ == '__main__':
    sys.exit(main())
