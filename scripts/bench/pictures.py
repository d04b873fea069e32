"""Models that write pictures as codes: learning from generated ones, and generating them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from scripts.bench import ours_online
from scripts.bench.compare import Found, in_turn, speed
from scripts.bench.measure import in_child, preload
from scripts.bench.online import GENERATIONS, LAYOUTS, argv_of, update
from scripts.bench.ours_online import Given
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, drawing_model, given_pictures, picture_prompts, write_rows

PAIR = 'text_to_image'
ENGINES = ('hf', 'vllm')


def pictures(folder: Path, size: Size) -> list[Ratio]:
    """The update of GRPO on groups of eight pictures, in both of our layouts."""
    model, data = _work(folder, size)
    ids, forced = given_pictures(model, size, GENERATIONS)
    given = Given(ids, [float(number % 3) for number in range(GENERATIONS)], forced)
    preload('deepspeed', 'align_anything.trainers.runs.online')
    argvs = {
        layout: argv_of(model, data, folder / layout, size, layout=layout, beta=0, max_new_tokens=len(ids[0]))
        for layout in LAYOUTS
    }
    sides: dict[str, Callable[[], Found]] = {
        layout: lambda argv=argv: in_child(update, PAIR, argv, given) for layout, argv in argvs.items()
    }
    done = in_turn(sides, size.rounds, size.groups * GENERATIONS * size.steps)
    return [speed('GRPO update on pictures', done, 'shared_prefix', 'padded', 1.5)]


def sampling(folder: Path, size: Size) -> list[Ratio]:
    """Wall-clock seconds in which transformers and vLLM sample the pictures of a step, without a target."""
    model, data = _work(folder, size)
    ids, _ = given_pictures(model, size, 1)
    preload('deepspeed', 'align_anything.trainers.runs.online')
    took = {}
    for engine in ENGINES:
        argv = argv_of(
            model, data, folder / engine, size, beta=0, max_new_tokens=len(ids[0]), use_vllm=engine == ENGINES[1]
        )
        took[engine] = in_child(_generation, argv)
    count = size.groups * GENERATIONS
    shown = ', '.join(f'{engine} {seconds:.2f} s' for engine, seconds in took.items())
    say(f'  {count} pictures of {size.picture_side**2} codes: {shown}')
    return []


def _work(folder: Path, size: Size) -> tuple[Path, Path]:
    """The checkpoint, and the file of the prompts of one step."""
    model = drawing_model(folder / 'model', size)
    return model, write_rows(folder / 'rows.jsonl', picture_prompts(model, size, size.groups))


def _generation(argv: list[str]) -> float:
    """Seconds of the quickest generation after the first."""
    _, phases = ours_online.train(PAIR, argv, 'grpo', seconds=time.perf_counter)
    return min(step['generation'] for step in phases[1:])
