"""What every training loop does: epochs, evaluation, checkpoints, and what to do when something is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch.profiler import record_function

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import gathered_lists, world_size
from align_anything.core.errors import DataError, SettingsError, TrainingError
from align_anything.core.logging import get_logger
from align_anything.core.types import Batch, Example, Skipped
from align_anything.datasets.loader import Loader
from align_anything.datasets.prompts import Prompts
from align_anything.datasets.skips import SkipReport
from align_anything.engines.averaged import AveragedWeights, warmed_up
from align_anything.engines.base import Engine
from align_anything.engines.checkpoint import BEST_NAME
from align_anything.engines.step import StepResult
from align_anything.reporting.callbacks import Watchers
from align_anything.reporting.console import TrainingConsole
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.profile import StepProfile
from align_anything.trainers.loops.meter import Meter
from align_anything.trainers.loops.progress import Progress

logger = get_logger(__name__)

EVALUATION_SEED = 0
STREAM_ROWS_BEFORE_RATIO = 200
"""Rows of a stream, whose length is unknown, that are seen before the share of skipped ones may stop the run."""


class Save(Protocol):
    def __call__(self, progress: Progress, *, with_state: bool, name: str | None = None) -> object: ...


class Writing(Protocol):
    """Checkpoints that are written while training goes on."""

    def vote(self) -> float:
        """A number whose sum over ranks is at least theirs once all have written, or one cannot."""
        ...

    def conclude(self) -> None:
        """Makes the checkpoint under way complete. Every rank calls it."""
        ...


class Tasks(Protocol):
    """Measures what the model answers to the evaluation data. Every rank makes the same calls."""

    names: Sequence[str]
    costs: Collection[str]

    def begin(self, step: int) -> None: ...

    def add(self, source: str, examples: Sequence[Example]) -> None: ...

    def measured(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns what they say of all answers, and of those of each source where there are several."""
        ...


class Previews(Protocol):
    """Shows what the model makes of fixed prompts, at step 0, every so many steps, and at the end."""

    every: int

    def __call__(self, step: int, writer: MetricsWriter) -> None: ...


@dataclass
class Loop:
    """Trains `algorithm` with what a loader gives. Every rank runs one, in step.

    `loader_steps` are those of the present epoch that are still to come. `ema`, the average of the trained weights, is
    what gets evaluated and previewed where there is one. `tasks` measure answers, where the settings name some. `meter`
    says how well devices are used, and `profile` records some steps. `writing` is there where checkpoints are written
    while training goes on.
    """

    cfgs: RunCfgs
    algorithm: Algorithm
    engine: Engine
    training: Loader
    evaluation: Mapping[str, Loader]
    rows: int | None
    steps: int
    progress: Progress
    writer: MetricsWriter
    console: TrainingConsole
    skips: SkipReport
    save: Save
    ema: AveragedWeights | None
    previews: Previews | None
    stop_asked: Callable[[], bool]
    watchers: Watchers
    tasks: Tasks | None = field(default=None, kw_only=True)
    meter: Meter | None = field(default=None, kw_only=True)
    profile: StepProfile | None = field(default=None, kw_only=True)
    writing: Writing | None = field(default=None, kw_only=True)
    loader_steps: LoaderSteps = field(init=False)

    def run(self) -> bool:
        """Trains until the last step. Returns False when it stopped early because it was asked to."""
        if self.progress.step == 0:
            self._preview()
        while self.progress.step < self.steps:
            self.loader_steps = LoaderSteps(self.training.steps(self.progress.epoch, self.progress.step_in_epoch))
            for loaded in self.loader_steps:
                goes_on = self._step(loaded)
                if self.profile is not None:
                    self.profile.stepped()
                if not goes_on:
                    return False
                if self.progress.step == self.steps:
                    break
            else:
                self._end_epoch()
                if self._stopped_by_watchers():
                    self._save_checkpoint(with_state=True)
                    return False
        if self.progress.step_in_epoch:
            self._end_epoch()
        return True

    def close(self) -> None:
        """Ends the data workers and closes the metrics and the console."""
        for loader in (self.training, *self.evaluation.values()):
            loader.close()
        if self.profile is not None:
            self.profile.close()
        self.console.close()
        self.writer.close()

    def evaluate(self) -> None:
        """Records the metrics of the evaluation data."""
        raise NotImplementedError

    def _step(self, loaded: LoaderStep) -> bool:
        """Trains on what the loader gave for one step. Returns False when the run should stop."""
        raise NotImplementedError

    def _stepped(self, before: int, stop: bool) -> bool:
        """Evaluates and saves where that is due after the steps since `before`. Returns whether the run goes on."""
        train, step = self.cfgs.train_cfgs, self.progress.step
        if train.eval_strategy == 'steps' and step // train.eval_interval > before // train.eval_interval:
            self.evaluate()
        if self.previews is not None and (
            step // self.previews.every > before // self.previews.every or step == self.steps
        ):
            self._preview()
        if self._stopped_by_watchers():
            stop = True
        if stop or self._saves_now(before):
            self._save_checkpoint(with_state=stop or train.save_checkpoint)
        return not stop

    def _timing(self) -> AbstractContextManager[None]:
        """Around the updates of the policy in a step that is reported: what they take of each rank's own time."""
        return nullcontext() if self.meter is None else self.meter.timing(self.engine.policy.model)

    @property
    def copies(self) -> int:
        """How many ranks in a row have the same rows, of which each computes a share."""
        return self.cfgs.train_cfgs.sequence_parallel_size

    @property
    def task_names(self) -> list[str]:
        """What metrics call the tasks."""
        return [] if self.tasks is None else list(self.tasks.names)

    def _stopped_by_watchers(self) -> bool:
        # After the last step there is nothing left to stop.
        return self.progress.step < self.steps and self.watchers.ask_to_stop()

    def _save_checkpoint(self, with_state: bool) -> None:
        saved = self.save(self.progress, with_state=with_state)
        self.console.note(f'checkpoint{"" if self.writing is None else ", being written"}: {saved}')

    def _vote(self) -> float:
        """What this rank adds to the sum that `_written` reads."""
        return 0.0 if self.writing is None else self.writing.vote()

    def _written(self, votes: float) -> None:
        """Makes the checkpoint under way complete once all ranks have written it. Every rank calls it."""
        if self.writing is not None and votes * self.copies >= world_size():
            self.writing.conclude()

    def _preview(self) -> None:
        if self.previews is not None:
            with self.as_evaluated():
                self.previews(self.progress.step, self.writer)

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Puts the average of the trained weights in their place, where there is one."""
        if self.ema is None:
            yield
            return
        with self.ema.in_place():
            yield

    def _evaluated_as(self, found: dict[str, float], known: Collection[str]) -> None:
        """Keeps the best model, and ends the run when it gets no better, as the settings ask.

        `known` are the names of all that an evaluation can give; what nothing was counted for it does not give.
        """
        train, progress = self.cfgs.train_cfgs, self.progress
        progress.last_evaluation = found
        if (train.save_best or train.early_stopping_patience) and self._improved(found, known):
            progress.best_step = progress.step
            if train.save_best:
                self.save(progress, with_state=False, name=BEST_NAME)
        if train.early_stopping_patience and progress.evaluations_since_best >= train.early_stopping_patience:
            self.console.note(f'stopping early: step {progress.best_step} was better than all evaluations since')
            self.steps = progress.step

    def _improved(self, found: Mapping[str, float], known: Collection[str]) -> bool:
        """Whether this evaluation is the best so far; remembers how many in a row were not."""
        progress, metric = self.progress, self.cfgs.train_cfgs.save_best or 'loss'
        if metric not in known:
            raise SettingsError(
                [f"train_cfgs.save_best: the evaluation gives no '{metric}'. It gives {', '.join(known)}."]
            )
        if metric not in found:
            return False  # there was nothing to measure it on, so it says nothing of the model
        value = found[metric]
        better = math.isfinite(value) and (
            progress.best is None or (value < progress.best if self._is_cost(metric) else value > progress.best)
        )
        progress.best, progress.evaluations_since_best = (
            (value, 0) if better else (progress.best, progress.evaluations_since_best + 1)
        )
        return better

    def _is_cost(self, metric: str) -> bool:
        return is_cost(metric) or (self.tasks is not None and metric in self.tasks.costs)

    def _saves_now(self, before: int) -> bool:
        # The last step is followed by the final model, which needs no checkpoint beside it.
        logger_cfgs, step = self.cfgs.logger_cfgs, self.progress.step
        interval = logger_cfgs.save_interval or math.ceil(self.steps / (logger_cfgs.save_total_limit + 1))
        return bool(logger_cfgs.save_total_limit) and step // interval > before // interval and step < self.steps

    def _end_epoch(self) -> None:
        if not self.progress.step_in_epoch:
            raise DataError('an epoch over the training data gave no rows; look at the datasets and their size.')
        self.progress.epoch += 1
        self.progress.step_in_epoch = 0
        self.progress.cursor = None
        if self.cfgs.train_cfgs.eval_strategy == 'epoch':
            self.evaluate()

    def _epochs_done(self) -> float:
        per_epoch = self.training.steps_in(self.progress.epoch)
        return self.progress.epoch + (self.progress.step_in_epoch / per_epoch if per_epoch else 0.0)

    def file_skips(self, skipped: list[Skipped]) -> None:
        """Lists rows that cannot be used. Every rank calls it with the same ones."""
        self.skips.add(skipped)
        self.progress.skipped, self.progress.filtered = len(self.skips), self.skips.filtered
        ratio = self.cfgs.data_cfgs.max_skipped_ratio
        if self.rows is not None:
            self.skips.check(self.rows, ratio)
        elif self.progress.seen >= STREAM_ROWS_BEFORE_RATIO:
            self.skips.check(self.progress.seen, ratio)

    def _concluded(self, batches: list[Batch], result: StepResult) -> None:
        """Lets the average follow a step, counts one of nothing, and handles one not applied for another reason."""
        if result.empty:
            self.progress.empty += 1
        elif not result.applied:
            self._nonfinite(batches, result)
        elif self.ema is not None:
            self.ema.follow(warmed_up(self.cfgs.diffusion_cfgs.ema_decay, self.ema.updates))

    def _of_steps(self, last: StepResult) -> dict[str, float]:
        """What every loop tells of its steps; a step that was not applied has no gradient to tell of."""
        progress = self.progress
        left_out = {
            'filtered': progress.filtered,
            'empty_steps': progress.empty,
            'nonfinite_steps': progress.nonfinite,
        }
        return {
            'learning_rate': self.engine.learning_rates[0],
            **({'grad_norm': self.engine.grad_norm} if last.applied else {}),
            'epoch': self._epochs_done(),
            'skipped': float(len(self.skips)),
            **{name: float(number) for name, number in left_out.items() if number},
        }

    def _nonfinite(self, batches: list[Batch], result: StepResult) -> None:
        """Handles a step that changed nothing because its loss or its gradient was not finite."""
        if result.finite and self.cfgs.train_cfgs.fp16:
            return  # the loss scale was too high and has been lowered: normal in float16 training
        suspects = result.suspects or (
            [] if not result.finite else [name for batch in batches for name in batch.sources]
        )
        names = gathered_lists(suspects, self.copies)
        what = 'gradient' if result.finite else 'loss'
        message = (
            f'step {self.progress.step}: the {what} is not finite; the weights were left as they were. '
            f'Samples in question: {", ".join(names[:20])}{" …" if len(names) > 20 else ""}.'
        )
        if self.cfgs.train_cfgs.nonfinite_loss == 'stop':
            raise TrainingError(
                f'{message} Look at them, lower the learning rate, or set train_cfgs.nonfinite_loss: skip.'
            )
        self.progress.nonfinite += 1
        logger.warning(message)


def is_cost(metric: str) -> bool:
    """Whether a metric is better when it is lower."""
    name = metric.partition('/')[0]  # without the kind of unit
    return name in ('loss', 'kl', 'squared_score') or name.endswith('_loss')


@dataclass(frozen=True)
class LoaderStep:
    """The micro-batches of one optimizer step, and the seconds that were spent waiting for them."""

    batches: list[Batch]
    waited: float


def examples_of(loaded: LoaderStep) -> list[Example]:
    """The prompts of a step of the loader of an online run."""
    prompts: list[Prompts] = loaded.batches
    return [example for batch in prompts for example in batch.examples]


class LoaderSteps:
    """The steps of an epoch, of which the next can be had before its turn.

    Args:
        batches: the micro-batches of each.
    """

    def __init__(self, batches: Iterator[list[Batch]]) -> None:
        self._batches = batches
        self._ahead: LoaderStep | None = None

    def __iter__(self) -> Iterator[LoaderStep]:
        return self

    def __next__(self) -> LoaderStep:
        loaded, self._ahead = self._ahead or self._read(), None
        if loaded is None:
            raise StopIteration
        return loaded

    def peek(self) -> LoaderStep | None:
        """Returns the next step, if there is one. In its turn nobody waits for it any more."""
        loaded = self._ahead or self._read()
        self._ahead = None if loaded is None else replace(loaded, waited=0.0)
        return loaded

    def _read(self) -> LoaderStep | None:
        started = time.perf_counter()
        with record_function('data'):
            batches = next(self._batches, None)
        return None if batches is None else LoaderStep(batches, time.perf_counter() - started)


def listed(terms: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.4f}' for name, value in terms.items()) or 'no row could be used'
