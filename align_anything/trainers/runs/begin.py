"""What every run begins and ends with: all that can be checked without weights, and what is saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, is_main, rank, world_size
from align_anything.core.errors import SettingsError
from align_anything.core.files import FINAL_NAME, atomic_write_text, writable_folder
from align_anything.core.flops import accelerator_of
from align_anything.core.logging import get_logger
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.sampler import Sampler
from align_anything.datasets.skips import SkipReport
from align_anything.datasets.source_loading import source_names
from align_anything.engines.checkpoint import (
    Checkpoint,
    agree_on_checkpoint,
    find_checkpoint,
    read_manifest,
    restore_random_state,
    set_aside,
)
from align_anything.engines.process_group import device_of_rank, join_process_group
from align_anything.metrics.base import Metric
from align_anything.models.action_space import read_action_space
from align_anything.models.spec import Spec
from align_anything.policies.base import Collator
from align_anything.reporting.callbacks import Callback, Watchers
from align_anything.reporting.console import TrainingConsole
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.plot import plot_metrics
from align_anything.reporting.profile import StepProfile
from align_anything.reporting.trackers.start import check_tracker
from align_anything.trainers.loops.base import Loop
from align_anything.trainers.loops.meter import TERA, Meter
from align_anything.trainers.loops.progress import Progress, rank_seed, resume_progress
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import build_on_meta, check_model, make_collator, require_trained
from align_anything.trainers.runs.checkpoints import EMA, Checkpoints
from align_anything.trainers.runs.checks import check_reference, reference_cache_of
from align_anything.trainers.runs.data import Sources, open_run, probed
from align_anything.trainers.runs.eval_tasks import EvalTasks, metrics_of
from align_anything.trainers.runs.output_folder import check_unused, require_shared
from align_anything.trainers.runs.settings import engine_config, precision_of

logger = get_logger(__name__)

TERMINATED = 128 + signal.SIGTERM
SETTINGS_FILE = 'settings.yaml'


@dataclass(frozen=True)
class Begun:
    """A run whose settings, data and checkpoint can be used, before a model is loaded."""

    pair: Pair
    resolved: Resolved
    output_dir: Path
    resume_from: Checkpoint | None
    progress: Progress
    sources: Sources
    spec: Spec
    collate: Collator
    watchers: Watchers
    metrics: Sequence[Metric]

    @property
    def resume_step(self) -> int | None:
        """The optimizer step that the run goes on from; None where it starts afresh."""
        return None if self.resume_from is None else self.progress.step

    def datasets(self, reserved: int = 0) -> tuple[ExampleDataset, list[ExampleDataset]]:
        """The rows to train on, and those of each source to evaluate; `reserved` tokens are left to a response.

        Raises DataError when the first rows of a source cannot be encoded, before weights are loaded.
        """
        wanted = self.resolved.cfgs, self.pair, self.spec, self.resolved.algorithm, reserved
        held_out = [probed([source], *wanted) for source in self.sources.evaluation]
        return probed(self.sources.training, *wanted), held_out

    def tasks(self, held_out: Sequence[ExampleDataset]) -> EvalTasks | None:
        """What measures the answers to the rows of each source to evaluate, as prompts; None without metrics.

        Raises DataError where the first rows lack what a metric reads.
        """
        if not self.metrics:
            return None
        rows = dict(zip(source_names(self.sources.evaluation), held_out, strict=True))
        tasks = EvalTasks(self.output_dir, self.spec, self.metrics, rows)
        tasks.try_out()
        return tasks


def begin(pair: Pair, resolved: Resolved, callbacks: Sequence[Callback] = ()) -> Begun:
    """Checks everything that can be checked without weights. Every rank calls it."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    check_unused(cfgs)
    output_dir = make_folders(cfgs, algorithm)
    check_tracker(cfgs.logger_cfgs.log_type)
    join_process_group()
    require_shared(output_dir, 'logger_cfgs.output_dir', 'Checkpoints are written by all ranks into one folder')
    engine_config(cfgs)
    check_reference(cfgs, algorithm)
    metrics = metrics_of(cfgs, pair)
    resume_from = agree_on_checkpoint(find_checkpoint(cfgs.train_cfgs.resume, output_dir))
    if resume_from is None and cfgs.train_cfgs.resume is not None and (output_dir / FINAL_NAME).exists():
        raise SettingsError(
            [
                f'train_cfgs.resume: {output_dir} holds the trained model of a run ({FINAL_NAME}), but no checkpoint '
                'to go on from. Name another folder, or replace that model (--overwrite_output_dir without --resume).'
            ]
        )
    progress = Progress()
    if resume_from is not None:
        progress = resume_progress(read_manifest(resume_from), cfgs, str(resume_from.path))
    kept = None if resume_from is None else read_action_space(resume_from.path, cfgs.model_cfgs.model_name_or_path)
    sources, spec = open_run(cfgs, pair, algorithm, kept)
    check_model(resolved, spec)
    collate = make_collator(cfgs, spec, pair, algorithm)
    model, _ = build_on_meta(cfgs, spec, algorithm)
    require_trained(cfgs, algorithm, collate, model, pair)
    watchers = Watchers(callbacks)
    return Begun(pair, resolved, output_dir, resume_from, progress, sources, spec, collate, watchers, metrics)


def check_steps(run: Begun, steps: int) -> None:
    """Raises SettingsError when the run is to go on from a checkpoint that is past its last step."""
    if run.progress.step > steps:
        raise SettingsError(
            [f'--resume: {run.resume_from.path} is past the {steps} steps of this run. Raise epochs or max_steps.']
        )


def start(run: Begun, checkpoints: Checkpoints, sampler: Sampler, steps: int) -> None:
    """Puts everything where an earlier run stood, or at the beginning."""
    cfgs, progress = run.resolved.cfgs, run.progress
    if run.resume_from is not None:
        ranks = read_manifest(run.resume_from)['world_size']
        checkpoints.load_state(run.resume_from.state, ranks)
        if ranks == world_size():
            restore_random_state(run.resume_from.state)
        else:
            logger.info(
                'the checkpoint is of %d ranks, this run has %d: dropout takes another course', ranks, world_size()
            )
            torch.manual_seed(rank_seed(cfgs.train_cfgs.seed + progress.step, rank()))
        if progress.cursor is not None:
            sampler.resume_at(progress.epoch, progress.step_in_epoch, progress.cursor)
        logger.info('resumed from %s after step %d of %d', run.resume_from.path, progress.step, steps)
    else:
        torch.manual_seed(rank_seed(cfgs.train_cfgs.seed, rank()))
    if is_main():
        for path in set_aside(run.output_dir, after=progress.step):
            logger.warning('an earlier run left this checkpoint, which now bears the name %s', path)
        atomic_write_text(run.output_dir / SETTINGS_FILE, dump_resolved(cfgs))


def bookkeeping(run: Begun, checkpoints: Checkpoints, dataset: ExampleDataset, steps: int) -> dict[str, Any]:
    """The arguments of every loop that say where it stands and who is told."""
    cfgs, algorithm, progress = run.resolved.cfgs, run.resolved.algorithm, run.progress
    own = cfgs.logger_cfgs
    # One bar is drawn from here on.
    disable_progress_bar()
    writer = MetricsWriter(
        run.output_dir,
        own.log_type,
        own.log_project,
        own.log_run_name or algorithm.name,
        settings=cfgs.model_dump(mode='json'),
        resume_step=run.resume_step,
        watchers=run.watchers,
    )
    return {
        'cfgs': cfgs,
        'algorithm': algorithm,
        'rows': len(dataset) if not cfgs.data_cfgs.streaming else None,
        'steps': steps,
        'progress': progress,
        'writer': writer,
        'console': TrainingConsole(steps, progress.step),
        'skips': SkipReport(run.output_dir, progress.skipped, progress.filtered),
        'save': checkpoints.save,
        'writing': None if checkpoints.staging_dir is None else checkpoints,
        'ema': checkpoints.averages.get(EMA),
        'stop_asked': StopSignal(),
        'watchers': run.watchers,
        'meter': Meter(peak_of(cfgs)),
        'profile': None if own.profile is None else StepProfile(run.output_dir, own.profile),
    }


def peak_of(cfgs: RunCfgs) -> float | None:
    """Returns the operations that this rank's device can do a second at best; None where nobody knows."""
    asked, device = cfgs.logger_cfgs.peak_tflops, device_of_rank()
    if asked is None:
        known = accelerator_of(torch.cuda.get_device_name(device)) if device.type == 'cuda' else None
        # Data sheets tell of half precision; of float32 it depends on what matrix products are allowed.
        asked = None if known is None or precision_of(cfgs) == 'fp32' else known.tflops
    return None if asked is None else asked * TERA


def finish(run: Begun, loop: Loop, checkpoints: Checkpoints) -> Path:
    """Runs the loop to its end, and saves what it trained. Returns the folder of that, or of the last checkpoint.

    Raises KeyboardInterrupt when Ctrl-C ended it early, and SystemExit when SIGTERM did.
    """
    with closing(loop):
        finished = loop.run()
    checkpoints.conclude()
    loop.skips.conclude()
    if run.progress.empty:
        logger.warning(
            '%d of %d optimizer steps had nothing to train on (metric empty_steps): their rows could not be used, or '
            'their responses were all worth the same',
            run.progress.empty,
            run.progress.step,
        )
    if not finished:
        signals = {number for own in all_gather_object(loop.stop_asked.received) for number in own}
        if signal.SIGINT in signals:
            raise KeyboardInterrupt(f'stopped by Ctrl-C after step {run.progress.step}; go on with --resume auto')
        if signal.SIGTERM in signals:
            logger.warning('stopped by SIGTERM after step %d; go on with --resume auto', run.progress.step)
            # Not 0: what should follow a whole run, in a script or a queue, must not follow this one.
            sys.exit(TERMINATED)
        logger.info('stopped by a callback after step %d; go on with --resume auto', run.progress.step)
        return checkpoints.folder_of(run.progress)
    trained = checkpoints.save(run.progress, with_state=False, name=FINAL_NAME)
    if is_main():
        logger.info('curves: %s', plot_metrics(run.output_dir))
        logger.info('trained model: %s', trained)
    return trained


def make_folders(cfgs: RunCfgs, algorithm: Algorithm) -> Path:
    """Makes the folders of the caches and the output folder, and returns the latter.

    Raises SettingsError for one that cannot be written to, before a model is loaded in vain.
    """
    caches = {
        'data_cfgs.sample_cache_dir': cfgs.data_cfgs.sample_cache_dir,
        'model_cfgs.feature_cache_dir': cfgs.model_cfgs.feature_cache_dir,
        'model_cfgs.media_code_dir': cfgs.model_cfgs.media_code_dir,
        'diffusion_cfgs.prepared_dir': cfgs.diffusion_cfgs.prepared_dir,
        'train_cfgs.reference_cache_dir': reference_cache_of(algorithm),
        'logger_cfgs.cache_dir': cfgs.logger_cfgs.cache_dir,
        'logger_cfgs.checkpoint_staging_dir': cfgs.logger_cfgs.checkpoint_staging_dir,
    }
    for setting, folder in caches.items():
        if folder is not None:
            writable_folder(folder, setting)
    return writable_folder(cfgs.logger_cfgs.output_dir, 'logger_cfgs.output_dir')


class StopSignal:
    """Whether this process was asked to end, by SIGTERM or Ctrl-C; the step under way is finished first.

    `received` are the signals that asked. A second Ctrl-C interrupts at once. Outside of the main thread, which alone
    gets signals, nothing asks.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def __call__(self) -> bool:
        return bool(self.received)

    def _remember(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and number in self.received:
            raise KeyboardInterrupt
        self.received.add(number)
