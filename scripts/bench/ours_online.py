"""Measured online runs of align-anything: CPU seconds of each phase of a step, on generated or on given responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from scripts.bench.measure import StepClock, cpu_seconds


@dataclass(frozen=True)
class Given:
    """A rollout engine and a reward in one: the same responses to every prompt, by their token ids and scores.

    `forced` is how many tokens at the beginning and at the end of each had no other choice.
    """

    ids: list[list[int]]
    scores: list[float]
    forced: tuple[int, int] = (0, 0)

    def generate(self, examples: Sequence[Any], sampling: Any) -> list[list[Any]]:
        """Returns the responses for each prompt, each sampled as if it was certain."""
        import torch

        from align_anything.core.types import Response

        first, last = self.forced
        return [
            [
                Response(
                    torch.tensor(ids),
                    torch.cat([torch.zeros(first), torch.ones(len(ids) - first - last), torch.zeros(last)]),
                    per_unit={'rollout': torch.zeros(len(ids) - first - last)},
                    finished=last > 0,
                )
                for ids in self.ids
            ]
            for _ in examples
        ]

    def sync(self, version: int) -> None:
        """Takes no weights."""

    def sleep(self) -> None:
        """Holds no memory."""

    def judge(self, completions: Sequence[Any]) -> list[float]:
        """Returns the scores."""
        return self.scores * (len(completions) // len(self.scores))


def train(
    pair_name: str,
    argv: list[str],
    algorithm: str,
    given: Given | None = None,
    seconds: Callable[[], float] = cpu_seconds,
) -> tuple[StepClock, list[dict[str, float]]]:
    """Trains and returns the clock of full steps, and for each step the `seconds` of each of its phases, of the CPU.

    Nothing is saved. Raises RuntimeError when the run falls back to another layout than it was asked for.
    """
    from align_anything.reporting.metrics import METRICS_FILE, TIMINGS_FILE, read_metrics
    from align_anything.rewards.base import Reward
    from align_anything.trainers.loops.online import OnlineLoop
    from align_anything.trainers.runs import online as online_run
    from scripts.bench.ours import resolved_run

    clock = StepClock()

    class Clocked(OnlineLoop):
        """Counts `seconds` where the loop counts those on the wall, and ends without a word."""

        def run(self) -> bool:
            asked, found = self.cfgs.train_cfgs.layout, self.engine.policy.collate.layout
            if asked not in ('auto', found):
                raise RuntimeError(f'the run fell back to the {found} layout; nothing to measure')
            if given is not None:
                self.rollouts, self.rewards = given, [Reward('given', 1.0, given.judge)]
            super().run()
            return False

        def _step(self, loaded: Any) -> bool:
            goes_on = super()._step(loaded)
            clock.mark()
            return goes_on

        @contextmanager
        def _clock(self, name: str) -> Iterator[None]:
            began = seconds()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds() - began

    pair, resolved = resolved_run(pair_name, argv, algorithm)
    with mock.patch.object(online_run, 'OnlineLoop', Clocked):
        online_run.train_online(pair, resolved)
    output = Path(resolved.cfgs.logger_cfgs.output_dir)
    records = read_metrics(output / METRICS_FILE)
    clock.losses = [record['train/loss'] for record in records]
    clock.norms = [record['train/grad_norm'] for record in records]
    prefix = 'train/seconds/'
    phases = [
        {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
        for record in read_metrics(output / TIMINGS_FILE)
    ]
    return clock, phases
