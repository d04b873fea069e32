"""What settings say about each other, before anything is opened: what a run cannot obey, and what its reference is."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.online import Online
from align_anything.algorithms.referring import Reference, Referring
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.registry import nearest
from align_anything.metrics.base import Metric
from align_anything.trainers.loops.pending import problems_of_generating_ahead
from align_anything.trainers.runs.acting import problems_of_acting
from align_anything.trainers.runs.settings import precision_of

logger = get_logger(__name__)


def check_online(cfgs: OnlineRunCfgs, algorithm: Online) -> None:
    """Raises SettingsError for settings that an online run cannot obey."""
    train, problems = cfgs.train_cfgs, []
    size, together = train.per_device_train_batch_size, algorithm.trained_responses
    if algorithm.compares and size % together:
        problems.append(
            f'train_cfgs.per_device_train_batch_size = {size}: {algorithm.name} compares {together} responses to a '
            f'prompt, so a micro-batch must hold a multiple of {together} responses.'
        )
    if train.early_stopping_patience is not None and train.save_best is None:
        problems.append('train_cfgs.early_stopping_patience: an evaluation has no loss here; set save_best: reward.')
    if cfgs.lora_cfgs.use_lora and cfgs.lora_cfgs.lora_dropout and algorithm.has_ratios:
        problems.append(
            f'lora_cfgs.lora_dropout = {cfgs.lora_cfgs.lora_dropout}: {algorithm.name} compares the policy '
            'with itself at the rollout, which has no dropout: on policy they would differ. Leave lora_dropout out.'
        )
    problems += problems_of_generating_ahead(cfgs, algorithm)
    problems += problems_of_acting(cfgs, algorithm)
    if problems:
        raise SettingsError(problems)


def check_warmup(algorithm: Online, steps: int) -> None:
    """Raises SettingsError where the critics would learn alone to the end of the run."""
    if algorithm.warmup >= steps:
        raise SettingsError(
            [
                f'train_cfgs.critic_warmup_steps: {algorithm.warmup} of {steps} steps leave none in which the policy '
                'trains. Give fewer, or train longer.'
            ]
        )


def check_evaluation(cfgs: RunCfgs, metrics: Sequence[str], steps: int, tasks: Sequence[Metric]) -> None:
    """Raises SettingsError for a `save_best` that is none of the `metrics` and `tasks` of an evaluation, or has none to
    go by, and for a task that is called as a metric is.

    Warns when the run is too short for an evaluation that was asked for.
    """
    train, names = cfgs.train_cfgs, [task.name for task in tasks]
    if taken := {*metrics} & {*names}:
        raise SettingsError(
            [f"train_cfgs.eval_tasks: an evaluation of this run tells of '{min(taken)}' already; leave it out."]
        )
    metrics = list(dict.fromkeys([*metrics, *names]))
    if train.save_best is not None and train.save_best not in metrics:
        raise SettingsError(
            [
                f"train_cfgs.save_best: an evaluation of this run gives no '{train.save_best}'."
                f'{nearest(train.save_best, metrics)} It gives {", ".join(metrics)}.'
            ]
        )
    if cfgs.data_cfgs.eval_datasets is None or train.eval_strategy != 'steps' or train.eval_interval <= steps:
        return
    short = (
        f'train_cfgs.eval_interval = {train.eval_interval}, but the run has {steps} optimizer steps, so it is never '
        'evaluated. Lower eval_interval, or choose eval_strategy: epoch'
    )
    if train.save_best is not None or train.early_stopping_patience is not None:
        raise SettingsError([f'{short}: save_best and early_stopping_patience go by evaluations.'])
    logger.warning('%s.', short)


def reference_cache_of(algorithm: Algorithm) -> str | None:
    """The folder of the reference's scores; responses that are generated cannot be scored beforehand."""
    return algorithm.reference_cache_dir if algorithm.refers and not algorithm.generates else None


def check_reference(cfgs: RunCfgs, algorithm: Algorithm) -> None:
    """Raises SettingsError for what the reference cannot do, and for an algorithm without the settings of one."""
    base = Reference if algorithm.generates else Referring
    if algorithm.refers and not isinstance(algorithm, base):
        kind = f'{type(algorithm).__module__}.{type(algorithm).__qualname__}'
        raise SettingsError(
            [f'algorithm {algorithm.name}: {kind} refers, so it must derive from {base.__module__}.{base.__name__}.']
        )
    if reference_cache_of(algorithm) is not None and cfgs.data_cfgs.streaming:
        raise SettingsError(
            ['train_cfgs.reference_cache_dir: a stream cannot be scored beforehand. Set data_cfgs.streaming: False.']
        )


def precision_of_reference(cfgs: RunCfgs, algorithm: Reference) -> str:
    """The precision in which a reference scores."""
    return precision_of(cfgs) if algorithm.reference_dtype == 'auto' else algorithm.reference_dtype
