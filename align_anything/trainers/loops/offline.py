"""The loop over a fixed dataset: an optimizer step for each step of the loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from align_anything.core.distributed import gathered_lists, rank
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, Scored, Skipped
from align_anything.datasets.loader import Loader
from align_anything.engines.balance import LOAD
from align_anything.engines.step import Objective, StepResult, combined
from align_anything.reporting.metrics import peak_memory
from align_anything.rollouts.base import RolloutEngine, Sampling
from align_anything.rollouts.experience import complete
from align_anything.trainers.loops.base import EVALUATION_SEED, LoaderStep, Loop, listed
from align_anything.trainers.loops.progress import rank_seed


@dataclass(frozen=True)
class Answers:
    """How the model answers the evaluation data, for `tasks` to measure.

    Attributes:
        prompts: those of each source.
        rollouts: generates with the present weights.
        sampling: how.
    """

    prompts: Mapping[str, Loader]
    rollouts: RolloutEngine
    sampling: Sampling


@dataclass
class OfflineLoop(Loop):
    """Trains `algorithm` on a loader, by the `objective` made of it. Every rank runs one, in step."""

    roles: Mapping[str, Callable[[Batch], Scored]]
    objective: Objective
    answers: Answers | None = field(default=None, kw_only=True)

    def close(self) -> None:
        """As every loop, and ends the workers of the prompts that are answered."""
        if self.answers is not None:
            for loader in self.answers.prompts.values():
                loader.close()
        super().close()

    def evaluate(self) -> None:
        """Scores the evaluation data and records the metrics over all of it, and by source where there are several.

        The best model so far is saved when the settings ask for it.
        """
        if not self.evaluation:
            return
        results = {name: self._evaluated(loader) for name, loader in self.evaluation.items()}
        total = combined(list(results.values()))
        said, said_of_each = self._answered()
        found = {**total.numbers, **said}
        several = results if len(results) > 1 else {}
        of_each = {f'{name}/{key}': value for name, own in several.items() for key, value in own.terms.items()}
        self.writer.log(self.progress.step, {**found, **of_each, **said_of_each}, prefix='eval')
        self.console.note(f'evaluation after step {self.progress.step}: ' + listed(found))
        self._evaluated_as(found, ['loss', *total.counts, *self.task_names])

    def _evaluated(self, loader: Loader) -> StepResult:
        skipped: list[Skipped] = []

        def batches() -> Iterator[Batch]:
            skipped.clear()
            for batch in loader.micro_batches(0):
                skipped.extend(batch.skipped)
                yield batch

        with self.as_evaluated():
            result = self.engine.evaluate(batches, self.objective, self.roles)
        self.file_skips(gathered_lists(skipped, self.copies))
        return result

    def _answered(self) -> tuple[dict[str, float], dict[str, float]]:
        """What tasks say of the answers to the evaluation data, see `Tasks.measured`; nothing without tasks."""
        if self.tasks is None or self.answers is None:
            return {}, {}
        sampling = replace(self.answers.sampling, responses=1, seed=rank_seed(EVALUATION_SEED, rank() // self.copies))
        self.answers.rollouts.sync(self.progress.step)
        self.tasks.begin(self.progress.step)
        with self.as_evaluated():
            for source, loader in self.answers.prompts.items():
                for prompts in loader.micro_batches(0):
                    self.file_skips(gathered_lists(prompts.skipped, self.copies))
                    generated = self.answers.rollouts.generate(prompts.examples, sampling)
                    self.tasks.add(source, complete(prompts.examples, generated))
        return self.tasks.measured()

    def _step(self, loaded: LoaderStep) -> bool:
        progress = self.progress
        started = time.perf_counter()
        told = loaded.batches[0].stats
        counted = (*(key for key in COUNTED if key in told), *by_source(told))
        local = {key: float(sum(batch.stats.get(key, 0) for batch in loaded.batches)) for key in counted}
        skipped = [item for batch in loaded.batches for item in batch.skipped]
        asked = {'stop': float(self.stop_asked()), 'written': self._vote()}
        extras = {**local, 'skipped': float(len(skipped)), **asked}
        with self._timing() if self._reports_at(progress.step + 1) else nullcontext():
            result = self.engine.train_step(loaded.batches, self.objective, self.roles, extras)
        took = loaded.waited + time.perf_counter() - started
        self._written(result.extras['written'])
        progress.step += 1
        progress.step_in_epoch += 1
        progress.cursor = self.training.sampler.cursor(progress.epoch, progress.step_in_epoch)
        progress.seen += int(result.extras['examples'] + result.extras['skipped'])
        if result.extras['skipped']:
            self.file_skips(gathered_lists(skipped, self.copies))
        self._concluded(loaded.batches, result)
        self.console.advance(progress.step)
        if self._reports_at(progress.step):
            self._report(result, loaded, took)
        return self._stepped(progress.step - 1, bool(result.extras['stop']))

    def _reports_at(self, step: int) -> bool:
        return step % self.cfgs.logger_cfgs.log_interval == 0 or step == self.steps

    def _report(self, result: StepResult, loaded: LoaderStep, took: float) -> None:
        extras, step = result.extras, self.progress.step
        metrics = {
            **result.numbers,
            **self._of_steps(result),
            'samples': extras['examples'],
            **_of_tokens(extras),
            **{key: extras[key] for key in by_source(extras)},
        }
        unit = 'tokens' if 'tokens' in metrics else 'samples'
        speed = f'{unit}_per_second'
        timings = {
            speed: metrics[unit] / took,
            'seconds_per_step': took,
            'data_wait': loaded.waited / took,
            'peak_memory': float(peak_memory()),
            **self._measured(loaded, took),
        }
        self.writer.log(step, metrics, timings=timings)
        names = [name for name in result.numbers if not name.startswith(LOAD)]
        shown = {key: metrics[key] for key in (*names, 'learning_rate', 'padding') if key in metrics}
        told = [key for key in (speed, 'mfu', 'peak_memory') if key in timings]
        self.console.report(step, {**shown, **{key: timings[key] for key in told}})

    def _measured(self, loaded: LoaderStep, took: float) -> dict[str, float]:
        """How well the devices were used. A reference beside the policy is taken for a model of its size."""
        if self.meter is None:
            return {}
        own = sum((flops for batch in loaded.batches for flops in self.engine.policy.flops(batch).values()), Flops())
        roles = Flops(own.forward * len(self.roles))
        cached, epoch = self.cfgs.data_cfgs.sample_cache_dir is not None, self.progress.epoch
        first_pass = cached and epoch == 0 and (self.training.steps_in(epoch) or self.steps) < self.steps
        computed = took - loaded.waited
        return self.meter.read((own + roles) / self.copies, computed, took, {'data': loaded.waited}, first_pass)


COUNTED = ('examples', 'tokens', 'padding', 'units', 'truncated')


def _of_tokens(extras: Mapping[str, float]) -> dict[str, float]:
    """What is told of the tokens of a step, by policies that have such."""
    if 'tokens' not in extras:
        return {}
    return {
        'tokens': extras['tokens'] - extras['padding'],
        **({'padding': extras['padding'] / extras['tokens']} if extras['tokens'] else {}),
        'truncated_answers': extras['truncated'],
    }


def by_source(names: Iterable[str]) -> list[str]:
    """Those among the names of counts that are of one source of several, the same on every rank."""
    return [name for name in names if '/' in name]
