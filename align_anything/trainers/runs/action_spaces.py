"""The action space of a run: that of its checkpoint, or what its settings and its data say before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.configs.actions import ActionCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.actions import ActionSpace
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Media, Skipped
from align_anything.datasets.action_statistics import Seen, seen_in
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.source_loading import source_names
from align_anything.models.acting.known import ACTS
from align_anything.models.action_codes import at_the_tail
from align_anything.models.action_space import act_in
from align_anything.models.family import FamilySpec
from align_anything.policies.token.plan import require_parallel

logger = get_logger(__name__)

ALL = 'all'
"""What the statistics of several datasets together are called."""
PROBED = 8
"""Rows of a source that are looked at for pictures."""
TURNED = ('rotate', 'flip', 'size')
"""Options of decoding that change where things are in a picture."""
FIXED = ('names', 'dimensions', 'bins', 'binning', 'normalization', 'tokens')
"""What a checkpoint with an action space has said for good."""


def acting(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm, rows: ExampleDataset | None = None) -> None:
    """Lets `spec` act as the run does: in the space of its checkpoint, or in one that settings and `rows` tell.

    Every rank calls it. `rows` are formatted and not decoded; without them nothing is learned.

    Raises SettingsError for settings that the checkpoint or the data contradict, ModelError where tokens of the
    vocabulary cannot stand for actions, and DataError for rows whose actions have nothing in common.
    """
    asked, source = cfgs.action_cfgs, cfgs.model_cfgs.model_name_or_path
    space = spec.space or _new_space(asked, source)
    _check_asked(asked, spec.space, source)
    is_named = bool(space.names or space.dimensions)
    # What a policy is rewarded for has no actions, and where nothing is wanted of the data nobody goes through them.
    wanted = rows is not None and algorithm.task != 'prompt' and not (space.names or _has_statistics(space, asked))
    seen, name = seen_of(rows) if wanted else (None, ALL)
    if not is_named:
        space = _named_by(seen, space, source)
    space = _with_statistics(space, asked, seen, algorithm, name)
    space = replace(space, pictures=_pictures(space, spec.space is not None, rows, source))
    chunk = asked.action_chunk or space.chunk
    executed = asked.action_executed or (space.executed if spec.space is not None else chunk)
    space = replace(space, chunk=chunk, executed=min(executed, chunk) if asked.action_executed is None else executed)
    space = replace(space, decoding=asked.action_decoding or space.decoding)
    if space.tokens == 'tail' and not space.first_ids:
        space = at_the_tail(space, spec.tokenizer)
    problems = space.problems()
    if problems:
        raise SettingsError([f'action_cfgs: {problem}.' for problem in problems])
    if spec.unit in ACTS:
        spec.act_in(space)
    else:
        act_in(spec, space)
        require_parallel(cfgs, spec, judges=algorithm.scores == 'responses')
    logger.info('actions: %s', told(space))


def seen_of(rows: ExampleDataset) -> tuple[Seen, str]:
    """Returns what all rows do, and what the data are called. Every rank calls it.

    Several datasets count as one, since their actions do not say which they are from.
    """
    names = source_names(rows.sources)
    name = names[0] if len(names) == 1 else ALL
    return seen_in(rows, name), name


def told(space: ActionSpace) -> str:
    """Returns a line that says what a policy does."""
    what = ', '.join(space.names) or f'{len(space.dimensions)} numbers ({", ".join(space.dimensions)})'
    written = {
        'reserved': 'reserved tokens',
        'tail': 'the tail of the vocabulary',
        'words': 'words, among all others that it may say',
        '': 'a head of their own',
    }[space.tokens]
    ids = f' from id {space.first_ids[0]}' if space.first_ids else ''
    bins = f', {space.bins} {space.binning} bins, {space.normalization}' if space.dimensions else ''
    at_once = ' said at once' if space.decoding == 'parallel' else ''
    return f'{what}; by {written}{ids}{bins}; {space.chunk} steps in a turn{at_once}, {space.executed} of them done'


def _pictures(space: ActionSpace, is_known: bool, rows: ExampleDataset | None, source: Any) -> Mapping[str, Any]:
    """What is done to pictures: the same in all data of a policy, and in its environments.

    The first pictures of each source tell, since it is their template that says so.
    """
    found = [] if rows is None else _turned_in(rows)
    if any(own != found[0] for own in found):
        raise DataError(
            f'some pictures of the training data are turned or scaled otherwise than others: {found}. A policy sees '
            'all of them alike.'
        )
    if is_known and found and found[0] != dict(space.pictures):
        raise DataError(
            f'{source} saw pictures with {dict(space.pictures) or "nothing"} done to them, and the training data have '
            f'{found[0] or "nothing"}: they would be upside down to it. Give the template the same options.'
        )
    return found[0] if found else space.pictures


def _turned_in(rows: ExampleDataset) -> list[dict[str, Any]]:
    """What is done to the first picture of each source that shows some."""
    found, begin = [], 0
    for size in rows.sizes:
        for number in range(begin, min(begin + size, begin + PROBED)):
            conversations = rows.formatted(number)
            parts = [
                part['image']
                for conversation in ([] if isinstance(conversations, Skipped) else conversations)
                for message in conversation
                for part in message['content']
                if part['type'] == 'image' and type(part['image']) is Media
            ]
            if parts:
                found.append({key: parts[0].options[key] for key in TURNED if parts[0].options.get(key)})
                break
        begin += size
    return found


def _has_statistics(space: ActionSpace, asked: ActionCfgs) -> bool:
    known = space.statistics and (asked.action_dataset is None or asked.action_dataset in space.statistics)
    return bool(space.dimensions and (known or space.normalization == 'identity'))


def _new_space(asked: ActionCfgs, source: Any) -> ActionSpace:
    if asked.action_tokens is None:
        raise ModelError(
            f'{source} has no action space: set action_cfgs.action_tokens to tail, or to words, or give it reserved '
            'tokens with align-anything add-action-tokens.'
        )
    return ActionSpace(
        names=tuple(asked.action_names or ()),
        dimensions=tuple(asked.action_dimensions or ()),
        bins=asked.action_bins,
        binning=asked.action_binning,
        normalization=asked.action_normalization,
        tokens=asked.action_tokens,
    )


def _check_asked(asked: ActionCfgs, known: ActionSpace | None, source: Any) -> None:
    """Raises SettingsError for what the space of the checkpoint says otherwise."""
    problems = []
    for name in FIXED if known is not None else ():
        key = f'action_{name}'
        value, default = getattr(asked, key), ActionCfgs.model_fields[key].default
        given = tuple(value) if isinstance(value, list) else value
        if value != default and given != getattr(known, name):
            has = getattr(known, name)
            has = ', '.join(has) if isinstance(has, tuple) else has
            problems.append(f'action_cfgs.{key}: the action space of {source} has {has or "none"}; leave it out.')
    if problems:
        raise SettingsError(problems)


def _named_by(seen: Seen | None, space: ActionSpace, source: Any) -> ActionSpace:
    """The space with the names, or the dimensions, that rows have."""
    if seen is None or not (seen.names or seen.values):
        raise SettingsError(
            [
                f'action_cfgs.action_names: nothing says what {source} can do: give the names of its actions, or '
                'action_dimensions, or train it on recorded actions first.'
            ]
        )
    if seen.names and seen.values:
        raise DataError('some actions of the training data are names, and some are numbers; a policy has one kind.')
    cameras = seen.one('cameras')
    if seen.names:
        return replace(space, names=seen.one('action_names') or tuple(sorted(seen.names)), cameras=cameras)
    (size,) = {len(running.least) for running in seen.values.values()}
    dimensions = seen.one('dimensions') or tuple(f'x{number}' for number in range(size))
    return replace(space, dimensions=dimensions, cameras=cameras)


def _with_statistics(
    space: ActionSpace, asked: ActionCfgs, seen: Seen | None, algorithm: Algorithm, own: str
) -> ActionSpace:
    """The space with statistics of the data, where it has none, or lacks those that are asked for.

    Those that it has stay as they are, whatever it is trained on: the same number is the same token then. `own` is what
    the data are called.
    """
    wanted = asked.action_dataset
    if not (wanted or space.names or space.dataset) and len(space.statistics) > 1:
        raise SettingsError(
            [
                'action_cfgs.action_dataset: the action space has statistics of several datasets, and nothing says '
                f'which un-normalise the actions: name one of {", ".join(sorted(space.statistics))}.'
            ]
        )
    if space.names or _has_statistics(space, asked):
        return space if wanted is None else replace(space, dataset=wanted)
    if seen is None or not seen.values or algorithm.task != 'supervised':
        raise SettingsError(
            [
                f'action_cfgs.action_dataset: there are no statistics of {wanted or "any dataset"} in the action space '
                f'({", ".join(sorted(space.statistics)) or "none"}), and these data tell none: train on recorded '
                'actions first.'
            ]
        )
    kept = asked.action_as_they_are or ()
    stray = sorted({*kept} - {*space.dimensions})
    if stray:
        raise SettingsError(
            [f"action_cfgs.action_as_they_are: no dimension is '{stray[0]}', but {', '.join(space.dimensions)}."]
        )
    (running,) = seen.values.values()
    summary = running.summary()
    if len(summary.mean) != len(space.dimensions):
        raise DataError(
            f'the action space has {len(space.dimensions)} dimensions ({", ".join(space.dimensions)}), but the actions '
            f'of the training data have {len(summary.mean)}.'
        )
    logger.info('actions of %s: %s', own, seen.written())
    made = summary.statistics(space.normalization, [name not in kept for name in space.dimensions])
    return replace(space, statistics={**space.statistics, wanted or own: made}, dataset=wanted or own)
