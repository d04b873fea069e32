"""What a run saves, and when: numbered checkpoints with state, the best model, the final one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import is_main, world_size
from align_anything.core.logging import get_logger
from align_anything.engines.averaged import AveragedWeights
from align_anything.engines.base import Engine
from align_anything.engines.checkpoint import prune, together, write_checkpoint
from align_anything.engines.staging import Staged, clear_staging, stage_checkpoint
from align_anything.models.spec import Spec
from align_anything.reporting.callbacks import Watchers
from align_anything.reporting.card import Trained, write_card
from align_anything.trainers.loops.pending import Pending
from align_anything.trainers.loops.progress import Progress, manifest_of

logger = get_logger(__name__)

SCRATCH = '.resumed_state'
EMA, OLD = 'ema', 'old'
"""The averages of a run: of which a model is saved, and which samples."""


@dataclass
class Checkpoints:
    """Saves the run: numbered checkpoints with state while it goes, the plain model at its end.

    `trained` are the engines of the run by role: the `policy`, which gets saved, and critics, whose state alone does;
    `write_model` writes models of its kind, and `pending` is what an online run has generated ahead, which belongs to
    its state. `averages` of what the policy trains belong to it too, by name; a model is saved of the one called
    `ema`, in a folder of that name. `watchers` are told of each.
    """

    resolved: Resolved
    output_dir: Path
    trained: Mapping[str, Engine]
    spec: Spec
    write_model: Callable[..., None]
    pending: Pending | None = None
    averages: Mapping[str, AveragedWeights] = field(default_factory=dict)
    watchers: Watchers = field(default_factory=Watchers)
    _staged: tuple[int, Staged] | None = field(default=None, init=False)
    """The step of the checkpoint that is being written while training goes on, and what writes it."""

    def __post_init__(self) -> None:
        if self.staging_dir is not None:
            clear_staging(self.staging_dir, self.output_dir)

    @property
    def staging_dir(self) -> Path | None:
        """Where checkpoints with a number are made, to be written while training goes on."""
        folder = self.resolved.cfgs.logger_cfgs.checkpoint_staging_dir
        return None if folder is None else Path(folder)

    def save(self, progress: Progress, *, with_state: bool, name: str | None = None) -> Path:
        """Writes the checkpoint `name`, by default `slice_<step>`, and deletes the oldest of those past the limit.

        With a `staging_dir` one with a number is there only once `conclude` was called. Every rank calls it.
        """
        final = self.folder_of(progress, name)
        how = {
            'write_model': partial(self._write_model, progress=progress, final=final),
            'write_state': partial(self._write_state, final=final) if with_state else None,
            'manifest': manifest_of(progress, self.resolved.cfgs),
        }
        if name is None and self.staging_dir is not None:
            self.conclude()
            self._staged = progress.step, stage_checkpoint(self.output_dir, final.name, self.staging_dir, **how)
            return final
        write_checkpoint(self.output_dir, final.name, **how)
        self._saved(progress.step, final, numbered=name is None)
        return final

    def vote(self) -> float:
        """See `Staged.vote`; 0 where no checkpoint is being written."""
        return 0.0 if self._staged is None else self._staged[1].vote()

    def conclude(self) -> None:
        """Waits for the checkpoint that is being written, if there is one. Every rank calls it.

        Raises CheckpointError on every rank where one of them cannot write.
        """
        if self._staged is None:
            return
        (step, staged), self._staged = self._staged, None
        if not staged.ended:
            logger.warning('waiting for the checkpoint %s, which is still being written', staged.final)
        staged.conclude()
        logger.info('checkpoint: %s', staged.final)
        self._saved(step, staged.final, numbered=True)

    def _saved(self, step: int, path: Path, *, numbered: bool) -> None:
        if is_main() and numbered:
            prune(self.output_dir, max(self.resolved.cfgs.logger_cfgs.save_total_limit, 1))
        self.watchers.saved(step, path)

    def folder_of(self, progress: Progress, name: str | None = None) -> Path:
        """Returns the folder of the checkpoint `name`, by default the numbered one."""
        return self.output_dir / (name or f'slice_{progress.step}')

    def load_state(self, folder: Path, ranks: int) -> None:
        """Restores every engine from the state in a checkpoint, which so many ranks wrote. Every rank calls it."""
        for role, engine in self.trained.items():
            own = state_folder(folder, role)
            other = ranks != world_size() or not engine.wrote(own)
            engine.load_state(own, self.output_dir / SCRATCH if other else None)
        for name, average in self.averages.items():
            average.load_state(folder / f'{name}.safetensors')
        if self.pending is not None:
            self.pending.load_state(folder)

    def _write_state(self, folder: Path, final: Path) -> None:
        for role, engine in self.trained.items():
            with together(final, folder):
                engine.save_state(state_folder(folder, role))
        for name, average in self.averages.items():
            with together(final, folder):
                average.save_state(folder / f'{name}.safetensors')
        if self.pending is not None:
            self.pending.save_state(folder)

    def _write_model(self, folder: Path, progress: Progress, final: Path) -> None:
        self._write_weights(folder, final)
        if EMA in self.averages:
            with self.averages[EMA].in_place():
                self._write_weights(folder / EMA, final)
        if is_main():
            trained = Trained(
                self.resolved.cfgs,
                self.resolved.algorithm,
                self.spec,
                self.output_dir,
                step=progress.step,
                evaluation=progress.last_evaluation,
            )
            write_card(folder, trained, earlier=final)

    def _write_weights(self, folder: Path, final: Path) -> None:
        engine = self.trained['policy']
        model = engine.policy.model
        state = engine.full_state_dict(model) if engine.partitioned else None
        with together(final, folder):
            if is_main():
                self.write_model(self.resolved.cfgs, self.spec, model, state, folder)


def averages_of(cfgs: RunCfgs, algorithm: Algorithm) -> list[str]:
    """The names of the averages of a run: of what it evaluates, and of the old policy where that samples."""
    samples_old = algorithm.generates and algorithm.old_decay(0) is not None
    return [*([] if cfgs.diffusion_cfgs.ema_decay is None else [EMA]), *([OLD] if samples_old else [])]


def make_averages(cfgs: RunCfgs, algorithm: Algorithm, policy: Engine) -> dict[str, AveragedWeights]:
    """The averages of a run by name. What samples is put in place too often to lie anywhere but on the device."""
    if cfgs.diffusion_cfgs.ema_on_cpu and policy.device.type == 'cpu':
        logger.warning('diffusion_cfgs.ema_on_cpu: on a CPU the average is in host memory anyway.')
    aside = {EMA: torch.device('cpu')} if cfgs.diffusion_cfgs.ema_on_cpu else {}
    return {name: AveragedWeights(policy, aside.get(name)) for name in averages_of(cfgs, algorithm)}


def state_folder(folder: Path, role: str) -> Path:
    """Where the state of a role lies in that of a checkpoint."""
    return folder if role == 'policy' else folder / role
