"""The loop over a fixed dataset: steps, metrics, evaluation, slices, and what to do when something is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import DataError, SettingsError, TrainingError
from align_anything.core.logging import get_logger
from align_anything.core.types import Batch, Scored, Skipped
from align_anything.datasets.loader import Loader
from align_anything.datasets.skips import SkipReport
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.window import WindowResult, combined
from align_anything.trainers.base.console import TrainingConsole
from align_anything.trainers.base.metrics import MetricsWriter, peak_memory
from align_anything.trainers.base.progress import Progress

logger = get_logger(__name__)

STREAM_ROWS_BEFORE_RATIO = 200
"""Rows of a stream, whose length is unknown, that are seen before the share of skipped ones may stop the run."""


class Save(Protocol):
    def __call__(self, progress: Progress, *, with_state: bool, name: str | None = None) -> object: ...


@dataclass
class OfflineLoop:
    """Trains `algorithm` on a loader. Every rank runs one, in step."""

    cfgs: RunCfgs
    algorithm: Algorithm
    engine: DeepSpeedEngine
    roles: Mapping[str, Callable[[Batch], Scored]]
    training: Loader
    evaluation: Mapping[str, Loader]
    rows: int | None
    steps: int
    progress: Progress
    writer: MetricsWriter
    console: TrainingConsole
    skips: SkipReport
    save: Save
    stop_asked: Callable[[], bool]

    def run(self) -> bool:
        """Trains until the last step. Returns False when it stopped early because it was asked to."""
        while self.progress.step < self.steps:
            for window in timed(self.training.steps(self.progress.epoch, self.progress.step_in_epoch)):
                if not self._step(window):
                    return False
                if self.progress.step == self.steps:
                    break
            else:
                self._end_epoch()
        if self.progress.step_in_epoch:
            self._end_epoch()
        return True

    def close(self) -> None:
        """Ends the data workers and closes the metrics and the console."""
        for loader in (self.training, *self.evaluation.values()):
            loader.close()
        self.console.close()
        self.writer.close()

    def evaluate(self) -> None:
        """Scores the evaluation data and records the metrics over all of it, and by source where there are several.

        The best model so far is saved when the settings ask for it.
        """
        if not self.evaluation:
            return
        results = {name: self._evaluated(loader) for name, loader in self.evaluation.items()}
        whole = combined(list(results.values()), self.algorithm)
        found = {'loss': whole.loss, **whole.terms}
        parts = results if len(results) > 1 else {}
        by_part = {f'{name}/{key}': value for name, part in parts.items() for key, value in part.terms.items()}
        self.writer.log(self.progress.step, {**found, **by_part}, prefix='eval')
        self.console.note(f'evaluation after step {self.progress.step}: ' + _listed(found))
        train, progress = self.cfgs.train_cfgs, self.progress
        progress.last_evaluation = found
        if (train.save_best or train.early_stopping_patience) and self._improved(found):
            progress.best_step = progress.step
            if train.save_best:
                self.save(progress, with_state=False, name=BEST_NAME)
        if train.early_stopping_patience and progress.evaluations_since_best >= train.early_stopping_patience:
            self.console.note(f'stopping early: step {progress.best_step} was better than all evaluations since')
            self.steps = progress.step

    def _evaluated(self, loader: Loader) -> WindowResult:
        skipped: list[Skipped] = []

        def batches() -> Iterator[Batch]:
            skipped.clear()
            for batch in loader.micro_batches(0):
                skipped.extend(batch.skipped)
                yield batch

        result = self.engine.evaluate(batches, self.algorithm, self.roles)
        self.file_skips([item for part in all_gather_object(skipped) for item in part])
        return result

    def _improved(self, found: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far; remembers how many in a row were not."""
        progress, metric = self.progress, self.cfgs.train_cfgs.save_best or 'loss'
        if metric not in found:
            raise SettingsError(
                [f"train_cfgs.save_best: the evaluation gives no '{metric}'. It gives {', '.join(found)}."]
            )
        value = found[metric]
        better = math.isfinite(value) and (
            progress.best is None or (value < progress.best if is_cost(metric) else value > progress.best)
        )
        progress.best, progress.evaluations_since_best = (
            (value, 0) if better else (progress.best, progress.evaluations_since_best + 1)
        )
        return better

    def _step(self, window: Window) -> bool:
        progress, train = self.progress, self.cfgs.train_cfgs
        started = time.perf_counter()
        counted = (*COUNTED, *by_source(window.batches[0].stats))
        local = {key: float(sum(batch.stats.get(key, 0) for batch in window.batches)) for key in counted}
        skipped = [item for batch in window.batches for item in batch.skipped]
        extras = {**local, 'skipped': float(len(skipped)), 'stop': float(self.stop_asked())}
        result = self.engine.train_window(window.batches, self.algorithm, self.roles, extras)
        took = window.waited + time.perf_counter() - started
        progress.step += 1
        progress.step_in_epoch += 1
        progress.place = self.training.sampler.place(progress.epoch, progress.step_in_epoch)
        progress.seen += int(result.extras['examples'] + result.extras['skipped'])
        if result.extras['skipped']:
            self.file_skips([item for part in all_gather_object(skipped) for item in part])
        if not result.applied and any(result.counts.values()):
            self._nonfinite(window.batches, result)
        self.console.advance(progress.step)
        if progress.step % self.cfgs.logger_cfgs.log_interval == 0 or progress.step == self.steps:
            self._report(result, took, window.waited)
        if train.eval_strategy == 'steps' and progress.step % train.eval_interval == 0:
            self.evaluate()
        stop = bool(result.extras['stop'])
        if stop:
            self.save(progress, with_state=True)
        elif self._saves_now():
            self.save(progress, with_state=train.save_checkpoint)
        return not stop

    def _saves_now(self) -> bool:
        # The last step is followed by the final model, which needs no slice beside it.
        logger_cfgs, step = self.cfgs.logger_cfgs, self.progress.step
        interval = logger_cfgs.save_interval or math.ceil(self.steps / (logger_cfgs.save_total_limit + 1))
        return bool(logger_cfgs.save_total_limit) and step % interval == 0 and step < self.steps

    def _end_epoch(self) -> None:
        if not self.progress.step_in_epoch:
            raise DataError('an epoch over the training data gave no rows; look at the datasets and their size.')
        self.progress.epoch += 1
        self.progress.step_in_epoch = 0
        self.progress.place = None
        if self.cfgs.train_cfgs.eval_strategy == 'epoch':
            self.evaluate()

    def _report(self, result: WindowResult, took: float, waited: float) -> None:
        extras, step = result.extras, self.progress.step
        metrics = {
            'loss': result.loss,
            **result.terms,
            'learning_rate': self.engine.learning_rates[0],
            'grad_norm': self.engine.grad_norm,
            'epoch': self._epochs_done(),
            'samples': extras['examples'],
            'tokens': extras['tokens'] - extras['padding'],
            'padding': extras['padding'] / max(extras['tokens'], 1.0),
            'skipped': float(len(self.skips)),
            **{key: extras[key] for key in by_source(extras)},
        }
        if self.progress.nonfinite:
            metrics['nonfinite_steps'] = float(self.progress.nonfinite)
        timings = {
            'tokens_per_second': metrics['tokens'] / took,
            'seconds_per_step': took,
            'data_wait': waited / took,
            'peak_memory': float(peak_memory()),
        }
        self.writer.log(step, metrics, timings=timings)
        shown = {key: metrics[key] for key in ('loss', *result.terms, 'learning_rate', 'padding')}
        self.console.report(step, {**shown, **{key: timings[key] for key in ('tokens_per_second', 'peak_memory')}})

    def _epochs_done(self) -> float:
        per_epoch = self.training.steps_in(self.progress.epoch)
        return self.progress.epoch + (self.progress.step_in_epoch / per_epoch if per_epoch else 0.0)

    def file_skips(self, skipped: list[Skipped]) -> None:
        """Lists rows that cannot be used. Every rank calls it with the same ones."""
        self.skips.add(skipped)
        self.progress.skipped = len(self.skips)
        ratio = self.cfgs.data_cfgs.max_skipped_ratio
        if self.rows is not None:
            self.skips.check(self.rows, ratio)
        elif self.progress.seen >= STREAM_ROWS_BEFORE_RATIO:
            self.skips.check(self.progress.seen, ratio)

    def _nonfinite(self, batches: list[Batch], result: WindowResult) -> None:
        """Handles a step that changed nothing because its loss or its gradient was not finite."""
        if result.finite and self.cfgs.train_cfgs.fp16:
            return  # the loss scale was too high and has been lowered: a normal part of float16 training
        suspects = result.suspects or (
            [] if not result.finite else [name for batch in batches for name in batch.sources]
        )
        names = [name for part in all_gather_object(suspects) for name in part]
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


BEST_NAME = 'slice_best'
COUNTED = ('examples', 'tokens', 'padding', 'units')


def is_cost(metric: str) -> bool:
    """Whether a metric is better when it is lower."""
    return metric in ('loss', 'kl', 'squared_score') or metric.endswith('_loss')


def by_source(names: Iterable[str]) -> list[str]:
    """Those among the names of counts that are of one source of several, the same on every rank."""
    return [name for name in names if '/' in name]


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step, and the seconds that were spent waiting for them."""

    batches: list[Batch]
    waited: float


def timed(windows: Iterator[list[Batch]]) -> Iterator[Window]:
    """Yields the windows with the time that each made the loop wait."""
    while True:
        started = time.perf_counter()
        window = next(windows, None)
        if window is None:
            return
        yield Window(window, time.perf_counter() - started)


def _listed(terms: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.4f}' for name, value in terms.items())
