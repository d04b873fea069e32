"""One run of an offline algorithm: everything is opened and checked, then trained, then saved."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.referring import Referring
from align_anything.configs.resolve import Resolved
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import is_main, rank
from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_text, writable_folder
from align_anything.core.logging import get_logger
from align_anything.datasets.skips import SkipReport
from align_anything.engines.checkpoint import (
    FINAL_NAME,
    Slice,
    agree_on_slice,
    find_slice,
    prune,
    read_manifest,
    restore_random_state,
    set_aside,
    write_slice,
)
from align_anything.engines.process_group import join_process_group
from align_anything.models.export import export_model
from align_anything.models.family import FamilySpec
from align_anything.trainers.base.assembly import (
    Assembled,
    assemble,
    choose_layout,
    engine_config,
    rehearse,
)
from align_anything.trainers.base.card import write_score_card
from align_anything.trainers.base.console import TrainingConsole
from align_anything.trainers.base.data import (
    loader_in_order,
    make_dataset,
    names_of,
    open_run,
    row_costs,
    total_steps,
    training_loader,
    training_sampler,
)
from align_anything.trainers.base.metrics import MetricsWriter
from align_anything.trainers.base.offline import OfflineLoop
from align_anything.trainers.base.pair import Pair
from align_anything.trainers.base.plot import plot_metrics
from align_anything.trainers.base.progress import Progress, manifest_of, rank_seed, resume_progress
from align_anything.trainers.base.reference import check_reference, make_roles
from align_anything.trainers.base.trackers import check_tracker

logger = get_logger(__name__)

SETTINGS_FILE = 'settings.yaml'


def train(pair: Pair, resolved: Resolved) -> None:
    """Runs one training from settings to the final model in `<output_dir>/slice_end`."""
    cfgs = resolved.cfgs
    output_dir = make_folders(cfgs, resolved.algorithm)
    check_tracker(cfgs.logger_cfgs.log_type)
    join_process_group()
    engine_config(cfgs)
    check_reference(cfgs, resolved.algorithm)
    resume_from = agree_on_slice(find_slice(cfgs.train_cfgs.resume, output_dir))
    progress = Progress() if resume_from is None else resumed(resume_from, resolved)
    sources, spec = open_run(cfgs, pair, resolved.algorithm)
    layout = choose_layout(cfgs, spec, resolved.algorithm)
    rehearse(cfgs, spec, resolved.algorithm)
    wanted = pair, spec, resolved.algorithm, cfgs.data_cfgs.train_on, cfgs.data_cfgs.sample_cache_dir
    dataset = make_dataset(sources.training, *wanted)
    costs, unusable = row_costs(dataset, spec, cfgs)
    sampler = training_sampler(sources.training, dataset, spec, cfgs, costs, padded=layout == 'padded')
    steps = total_steps(cfgs, sampler)
    if progress.step > steps:
        raise SettingsError(
            [f'--resume: {resume_from.path} is past the {steps} steps of this run. Raise epochs or max_steps.']
        )

    torch.manual_seed(cfgs.train_cfgs.seed)
    assembled = assemble(cfgs, resolved.algorithm, spec, pair, layout, steps)
    held_out = [make_dataset([part], *wanted) for part in sources.evaluation]
    # Before the state of an earlier run is loaded: the policy is still what it is compared with.
    roles, training_rows, held_out_rows = make_roles(cfgs, resolved.algorithm, spec, assembled, dataset, held_out)
    if resume_from is not None:
        assembled.engine.load_state(resume_from.state)
        restore_random_state(resume_from.state)
        if progress.place is not None:
            sampler.go_on(progress.epoch, progress.step_in_epoch, progress.place)
        logger.info('resumed from %s after step %d of %d', resume_from.path, progress.step, steps)
    else:
        torch.manual_seed(rank_seed(cfgs.train_cfgs.seed, rank()))
    if is_main():
        for path in set_aside(output_dir, after=progress.step):
            logger.warning('an earlier run left this slice, which now bears the name %s', path)
        atomic_write_text(output_dir / SETTINGS_FILE, dump_resolved(cfgs))

    batch_size = cfgs.train_cfgs.per_device_eval_batch_size
    evaluation = {
        name: loader_in_order(rows, dataset.sizes, batch_size, assembled.collator, cfgs)
        for name, rows, dataset in zip(names_of(sources.evaluation), held_out_rows, held_out, strict=True)
    }
    slices = Slices(resolved, output_dir, assembled, spec)
    writer = MetricsWriter(
        output_dir,
        cfgs.logger_cfgs.log_type,
        cfgs.logger_cfgs.log_project,
        cfgs.logger_cfgs.log_run_name or resolved.algorithm.name,
        settings=cfgs.model_dump(mode='json'),
        resume_step=None if resume_from is None else progress.step,
    )
    loop = OfflineLoop(
        cfgs=cfgs,
        algorithm=resolved.algorithm,
        engine=assembled.engine,
        roles=roles,
        training=training_loader(training_rows, sampler, assembled.collator, cfgs),
        evaluation=evaluation,
        rows=len(dataset) if not cfgs.data_cfgs.streaming else None,
        steps=steps,
        progress=progress,
        writer=writer,
        console=TrainingConsole(steps, progress.step),
        skips=SkipReport(output_dir, keep=progress.skipped),
        save=slices.save,
        stop_asked=StopSignal(),
    )
    loop.file_skips(unusable)
    with closing(loop):
        finished = loop.run()
    loop.skips.conclude()
    if not finished:
        logger.warning('stopped by SIGTERM after step %d; go on with --resume auto', progress.step)
        return
    slices.save_final(progress)
    if is_main():
        logger.info('curves: %s', plot_metrics(output_dir))
        logger.info('trained model: %s', output_dir / FINAL_NAME)


def resumed(item: Slice, resolved: Resolved) -> Progress:
    """The progress of the slice that the run goes on from. Raises SettingsError when the run is not the same one."""
    return resume_progress(read_manifest(item), resolved.cfgs, str(item.path))


def make_folders(cfgs: RunCfgs, algorithm: Algorithm) -> Path:
    """Makes the folders of the caches and the output folder, and returns the latter.

    Raises SettingsError for one that cannot be written to, before a model is loaded in vain.
    """
    caches = {
        'data_cfgs.sample_cache_dir': cfgs.data_cfgs.sample_cache_dir,
        'model_cfgs.feature_cache_dir': cfgs.model_cfgs.feature_cache_dir,
        'train_cfgs.reference_cache_dir': algorithm.reference_cache_dir if isinstance(algorithm, Referring) else None,
    }
    for setting, folder in caches.items():
        if folder is not None:
            writable_folder(folder, setting)
    return writable_folder(cfgs.logger_cfgs.output_dir, 'logger_cfgs.output_dir')


class StopSignal:
    """Whether this process was asked to end; the step under way is finished first."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._remember)

    def __call__(self) -> bool:
        return self._asked

    def _remember(self, *_: Any) -> None:
        self._asked = True


@dataclass
class Slices:
    """Saves the run: numbered slices with state while it goes, the plain model at its end."""

    resolved: Resolved
    output_dir: Path
    assembled: Assembled
    spec: FamilySpec

    def save(self, progress: Progress, *, with_state: bool, name: str | None = None) -> Path:
        """Writes the slice `name`, by default `slice_<step>`, and deletes the oldest of those beyond the limit.

        Every rank calls it.
        """
        path = write_slice(
            self.output_dir,
            name or f'slice_{progress.step}',
            write_model=lambda folder: self._write_model(folder, progress),
            write_state=self.assembled.engine.save_state if with_state else None,
            manifest=manifest_of(progress, self.resolved.cfgs),
        )
        if is_main() and name is None:
            prune(self.output_dir, max(self.resolved.cfgs.logger_cfgs.save_total_limit, 1))
        return path

    def save_final(self, progress: Progress) -> Path:
        """Writes the trained model without training state."""
        return write_slice(
            self.output_dir,
            FINAL_NAME,
            write_model=lambda folder: self._write_model(folder, progress),
            write_state=None,
            manifest=manifest_of(progress, self.resolved.cfgs),
        )

    def _write_model(self, folder: Path, progress: Progress) -> None:
        engine, model = self.assembled.engine, self.assembled.model
        state = engine.full_state_dict(model) if engine.stage == 3 else None
        if is_main():
            export_model(
                model,
                state,
                folder,
                tokenizer=self.spec.tokenizer,
                processor=self.spec.processor,
                merge_adapter=self.resolved.cfgs.lora_cfgs.save_full_model,
                end_of_turn_id=self.spec.renderer.end_of_turn_id,
                pad_token_id=self.spec.pad_token_id,
            )
            if self.resolved.algorithm.scores == 'responses':
                write_score_card(
                    folder,
                    algorithm=self.resolved.algorithm.name,
                    source=self.resolved.cfgs.model_cfgs.model_name_or_path,
                    spec=self.spec,
                    evaluation=progress.last_evaluation,
                    step=progress.step,
                )
