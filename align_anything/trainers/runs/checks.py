"""What settings say about each other, before anything is opened: what a run cannot obey, and what its reference is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedConfig

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.online import Online
from align_anything.algorithms.referring import Reference, Referring
from align_anything.configs.effects import FREEZING
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.registry import nearest
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec, positions_of
from align_anything.trainers.loops.pending import problems_of_generating_ahead
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
            f'lora_cfgs.lora_dropout = {cfgs.lora_cfgs.lora_dropout}: {algorithm.name} clips the ratio of the policy '
            'to itself at the rollout, which has no dropout: on policy it would not be 1. Leave lora_dropout out.'
        )
    problems += problems_of_generating_ahead(cfgs, algorithm)
    if problems:
        raise SettingsError(problems)


def check_evaluation(cfgs: RunCfgs, metrics: Sequence[str], steps: int) -> None:
    """Raises SettingsError for a `save_best` that is none of the `metrics` of an evaluation, or has none to go by.

    Warns when the run is too short for an evaluation that was asked for.
    """
    train, metrics = cfgs.train_cfgs, list(dict.fromkeys(metrics))
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


def check_freezing(resolved: Resolved, components: Collection[str]) -> None:
    """Raises SettingsError when the user asks to freeze a component that is not among those of the model.

    A file may be written for several models: there it is told. What a pair presets for its models needs no word.
    """
    problems = []
    for path in FREEZING:
        group, key = path.split('.')
        component = key.removeprefix('freeze_')
        if component in components or not resolved.given(path) or not getattr(getattr(resolved.cfgs, group), key):
            continue
        model = resolved.cfgs.model_cfgs.model_name_or_path
        said = f'{path} ({resolved.origins[path]}): {model} has no {component}, only {", ".join(components)}'
        if path in resolved.in_files:
            logger.info('%s; it is left out.', said)
        else:
            problems.append(f'{said}. Leave it out.')
    if problems:
        raise SettingsError(problems)


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


def require_positions(config: PreTrainedConfig, source: str, length: int, setting: str) -> None:
    """Raises SettingsError when sequences of so many tokens, which `setting` asks for, are more than a model reads."""
    positions = positions_of(config)
    if positions is not None and length > positions:
        raise SettingsError([f'{setting} = {length} is more than the {positions} positions of {source}.'])


def require_reference_reads(cfgs: RunCfgs, algorithm: Algorithm, policy: FamilySpec) -> None:
    """Raises SettingsError or ModelError for a reference that cannot read the token ids of the policy.

    Positions and rows of the embedding must be there for all of them, and a token that has a number in both must have
    the same. What a model with media is given, its family makes, which must be that of the policy then.
    """
    source = algorithm.reference_model_name_or_path if algorithm.refers else None
    if source in (None, cfgs.model_cfgs.model_name_or_path):
        return
    reference = load_spec(source, model_max_length=None, trust_remote_code=cfgs.model_cfgs.trust_remote_code)
    require_positions(reference.config, source, policy.max_length, 'model_cfgs.model_max_length')
    setting = 'train_cfgs.reference_model_name_or_path'
    if policy.reads and reference.model_type != policy.model_type:
        raise ModelError(
            f'{setting}: {source} is of the family {reference.model_type}, the policy of {policy.model_type}, which '
            'makes what both are given of media. Name a reference of the same family.'
        )
    theirs = {number: token for token, number in reference.tokenizer.get_vocab().items()}
    ours = {number: token for token, number in policy.tokenizer.get_vocab().items() if number < policy.embedding_rows}
    for number, token in sorted(ours.items()):
        other = theirs.get(number, token)
        if other != token or number >= reference.embedding_rows:
            found = repr(other) if other != token else f'none, having {reference.embedding_rows} rows in its embedding'
            raise ModelError(
                f'{setting}: {source} does not read the tokens of the policy: {number} is {token!r} to the policy, but '
                f'to the reference {found}. Name a reference with the same tokenizer.'
            )
