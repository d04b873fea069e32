"""What a checkpoint makes of settings: what its kind of models has not, and what a reference of it must read."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from transformers import PreTrainedConfig

from align_anything.algorithms.base import Algorithm
from align_anything.configs.effects import FREEZING
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec, positions_of

logger = get_logger(__name__)


def check_freezing(resolved: Resolved, components: Collection[str]) -> None:
    """Raises SettingsError when the user asks to freeze a component that is not among those of the model.

    A file may be written for several models: there it is told. What a pair presets for its models needs no word.
    """
    model, stray = resolved.cfgs.model_cfgs.model_name_or_path, {}
    for path in FREEZING:
        group, key = path.split('.')
        component = key.removeprefix('freeze_')
        if component not in components and resolved.given(path) and getattr(getattr(resolved.cfgs, group), key):
            stray[path] = f'{model} has no {component}, only {", ".join(components)}'
    _leave_out(resolved, stray)


def _leave_out(resolved: Resolved, reasons: Mapping[str, str]) -> None:
    """Tells which settings of files are left out, and why. Raises SettingsError for those that were given elsewhere."""
    problems = []
    for path, why in reasons.items():
        said = f'{path} ({resolved.origins[path]}): {why}'
        if path in resolved.in_files:
            logger.info('%s; it is left out.', said)
        else:
            problems.append(f'{said}. Leave it out.')
    if problems:
        raise SettingsError(problems)


def without_effect(resolved: Resolved, patterns: Collection[str], why: str) -> Resolved:
    """Returns the run without the settings of these patterns, which models of this kind do not read.

    What the user gave in a file, which may be written for several models, is told. Raises SettingsError for what was
    given elsewhere.
    """
    paths = [path for pattern in patterns for path in fnmatch.filter(resolved.origins, pattern)]
    given = [path for path in paths if path.count('.') == 1 and resolved.given(path)]
    # The settings of a run, given again as a file, have every default written out.
    told = [path for path in given if path not in resolved.in_files or not _is_default(resolved.cfgs, path)]
    _leave_out(resolved, dict.fromkeys(told, f'it means nothing here: {why}'))
    groups = {}
    for path in given:
        name, key = path.split('.')
        group = groups.get(name, getattr(resolved.cfgs, name))
        groups[name] = group.model_copy(update={key: _default(type(group), key)})
    kind = type(resolved.algorithm)
    own = [path.split('.')[1] for path in given if path.startswith('train_cfgs.')]
    changed = {key: _default(kind, key) for key in own if key in kind.model_fields}
    return replace(
        resolved,
        cfgs=resolved.cfgs.model_copy(update=groups),
        algorithm=resolved.algorithm.model_copy(update=changed),
    )


def _is_default(cfgs: RunCfgs, path: str) -> bool:
    name, key = path.split('.')
    group = getattr(cfgs, name)
    return getattr(group, key) == _default(type(group), key)


def _default(kind: type[BaseModel], key: str) -> Any:
    return kind.model_fields[key].get_default(call_default_factory=True)


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
