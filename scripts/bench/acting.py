"""Environments: the share of a step that episodes wait for 64 of gymnasium, in this process and in others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from align_anything.environments import Said
from align_anything.environments.worlds.gym import Gymnasium
from scripts.bench.measure import in_child, preload
from scripts.bench.online import GENERATIONS, PAIR, argv_of
from scripts.bench.report import Ratio
from scripts.bench.work import Size, Texts, seeing_model, words, write_rows

WORLD = 'MiniGrid-Fetch-5x5-N2-v0'
GROUPS, TURNS, PROMPT, STEPS = 4, 3, 64, 2
"""Prompts for each one of other benchmarks; turns of an episode, tokens of its prompt; steps, the first left out."""
WAYS = {'in this process': 0, 'in 2 processes': 2}


class Walk(Gymnasium):
    """MiniGrid in pictures of 56 x 56, where whatever a model without a mind says is one of the actions."""

    def __init__(self) -> None:
        super().__init__(WORLD, observation='image', pixels=56)

    def _todo(self, said: Said) -> list[Any]:
        return [sum(map(ord, said.text)) % len(self.actions.names)]


def environments(folder: Path, size: Size) -> list[Ratio]:
    """Full steps of GRPO of a Qwen2.5-VL-type model, whose episodes have a picture in each turn, on the wall."""
    model = seeing_model(folder / 'model', size)
    prompts = GROUPS * size.groups
    texts = Texts(model, words(size.words // 2), seed=3)
    rows = [texts.pair(PROMPT, 8, 8) for _ in range(prompts)]
    data = write_rows(folder / 'rows.jsonl', rows)
    preload('deepspeed', 'align_anything.trainers.runs.online')
    found = []
    for what, workers in WAYS.items():
        argv = argv_of(
            model,
            data,
            folder / what.replace(' ', '_'),
            size,
            environment=f'{Path(__file__).resolve()}:Walk',
            environment_workers=workers,
            per_device_prompt_batch_size=prompts,
            gradient_accumulation_steps=GROUPS,
            max_turns=TURNS,
            max_steps=STEPS,
            max_new_tokens=8,
            model_max_length=4096,
            stop='[a, e, i, o, u]',
            freeze_vision_tower=True,
            reward_functions='[]',
        )
        waited, whole = in_child(_waiting, argv)
        detail = f'{1000 * waited:.0f} of {1000 * whole:.0f} ms a step, {prompts * GENERATIONS} episodes'
        found.append(Ratio(f'environments {what}: waiting / step', waited / whole, 0.1, at_most=True, detail=detail))
    return found


def _waiting(argv: list[str]) -> tuple[float, float]:
    """Seconds that a step waits for environments, and that it takes, on the wall; the first step is left out."""
    from align_anything.environments.pool import Pool
    from scripts.bench import ours_online

    waited, steps = [0.0], []

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked_call(*args: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args)
            finally:
                waited[0] += time.perf_counter() - begun

        return clocked_call

    class Marks(ours_online.StepClock):
        """Keeps when steps end, and how long was waited until then."""

        def mark(self) -> None:
            super().mark()
            steps.append((time.perf_counter(), waited[0]))

    calls = {name: clocked(getattr(Pool, name)) for name in ('open', 'begin', 'step', 'score', 'close')}
    with mock.patch.multiple(Pool, **calls), mock.patch.object(ours_online, 'StepClock', Marks):
        ours_online.train(PAIR, argv, 'grpo')
    (first, before), (last, after), number = steps[0], steps[-1], len(steps) - 1
    return (after - before) / number, (last - first) / number
