"""The action space of a run: that of its checkpoint, or what its settings and its data say before it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.configs.actions import ActionCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.actions import STATE, TURNED, ActionSpace
from align_anything.core.distributed import is_main
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation, Media, Skipped
from align_anything.datasets.action_datasets import (
    datasets_of,
    is_normalised,
    lacking,
    usual_dataset,
    with_dataset,
    with_published,
    with_statistics,
)
from align_anything.datasets.action_statistics import Seen, seen_in
from align_anything.datasets.dataset import ExampleDataset
from align_anything.models.acting.known import ACTS
from align_anything.models.acting.published import problems_of_version
from align_anything.models.action_codes import at_the_tail
from align_anything.models.action_space import act_in
from align_anything.models.family import FamilySpec
from align_anything.policies.token.plan import require_parallel

logger = get_logger(__name__)

PROBED = 8
"""Rows of a source that are looked at for pictures."""
FIXED = ('names', 'dimensions', 'bins', 'binning', 'normalization', 'tokens')
"""What a checkpoint with an action space has said for good."""


def acting(
    cfgs: RunCfgs,
    spec: FamilySpec,
    algorithm: Algorithm,
    rows: ExampleDataset | None = None,
    kept: ActionSpace | None = None,
) -> None:
    """Lets `spec` act as the run does: in the space of its checkpoint, or in one that settings and `rows` tell.

    Every rank calls it. `rows` are formatted and not decoded; without them nothing is learned. A run that goes on acts
    in the space that it has `kept`, and its data are asked for nothing that this has.

    Raises SettingsError for settings that the checkpoint or the data contradict, ModelError where tokens of the
    vocabulary cannot stand for actions, and DataError for rows whose actions have nothing in common.
    """
    asked, source = cfgs.action_cfgs, cfgs.model_cfgs.model_name_or_path
    if asked.model_version is not None:
        _require_version(spec, asked.model_version, source)
    known = kept or spec.space
    space = known or _new_space(asked, source)
    _check_asked(asked, spec.space, source)
    space = _with_states(space, asked, source)
    space = space if kept is not None else with_published(space, asked)
    is_named, teaches = bool(space.names or space.dimensions), algorithm.task == 'supervised'
    # What a policy is rewarded for has no actions, and where nothing is wanted of the data nobody goes through them.
    learns = rows is not None and algorithm.task != 'prompt'
    names = datasets_of(rows.sources, space, asked, teaches) if learns else []
    seen = seen_in(rows, names) if learns and (not is_named or (teaches and lacking(space, names))) else None
    if not is_named:
        space = _named_by(seen, space, source)
    needed = is_normalised(space) or space.states
    wanted = names or ([asked.action_dataset or usual_dataset(space)] if needed else [])
    space = with_statistics(space, asked, seen, wanted, teaches)
    space = with_dataset(space, asked, names, not learns or bool(cfgs.train_cfgs.eval_tasks))
    space = replace(space, pictures=_pictures(space, known is not None, rows, source))
    if rows is not None and space.cameras:
        _require_cameras(space, rows, source)
    chunk = asked.action_chunk or space.chunk
    executed = asked.action_executed or (space.executed if known is not None else chunk)
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
    _tell_unread_states(spec, rows)


def _require_version(spec: FamilySpec, version: str, source: Any) -> None:
    problems = problems_of_version(spec.config, version)
    if problems:
        raise ModelError(
            f'action_cfgs.model_version: {source} is no {version}: {"; ".join(problems)}. The checkpoint says how '
            'large it is: name another one, or leave model_version out (null).'
        )


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
    cut = f', {space.bins} {space.binning} bins' if space.first_ids else ''
    bins = f'{cut}, {space.normalization}' if space.dimensions else ''
    at_once = ' said at once' if space.decoding == 'parallel' else ''
    steps = f'{space.chunk} steps' if space.chunk > 1 else 'one step'
    done = f', {space.executed} of them done' if space.chunk > 1 else ''
    return f'{what}; by {written}{ids}{bins}; {steps} in a turn{at_once}{done}'


def _pictures(space: ActionSpace, is_known: bool, rows: ExampleDataset | None, source: Any) -> Mapping[str, Any] | None:
    """What is done to pictures: the same in all data of a policy, and in its environments.

    The first pictures of each source tell, since it is their template that says so.
    """
    found = [] if rows is None else _turned_in(rows)
    if any(own != found[0] for own in found):
        raise DataError(
            f'some pictures of the training data are turned or scaled otherwise than others: {found}. A policy sees '
            'all of them alike.'
        )
    if is_known and found and space.pictures is not None and found[0] != dict(space.pictures):
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


def _require_cameras(space: ActionSpace, rows: ExampleDataset, source: Any) -> None:
    """Raises DataError for pictures in another order than the policy saw them in; those of other cameras are told."""
    for _, meta in _first_rows(rows):
        told = tuple(meta.get('cameras') or space.cameras)
        wanted, shown = ', '.join(space.cameras), ', '.join(told)
        if told != space.cameras and {*told} == {*space.cameras}:
            raise DataError(
                f'{source} sees the cameras {wanted} in this order, and the training data have {shown}: it would take '
                f'one for the other. Give the template that order: train_template_kwargs {{cameras: [{wanted}]}}.'
            )
        if told != space.cameras and is_main():
            logger.warning('%s sees the cameras %s, and some training data have %s.', source, wanted, shown)


def _with_states(space: ActionSpace, asked: ActionCfgs, source: Any) -> ActionSpace:
    """The space with the states that are asked for, of which it may have those already."""
    states = tuple(asked.action_states or ())
    if states and space.states not in ((), states):
        has = ', '.join(space.states)
        raise SettingsError([f'action_cfgs.action_states: the action space of {source} has {has}; leave it out.'])
    return replace(space, states=states or space.states)


def _tell_unread_states(spec: FamilySpec, rows: ExampleDataset | None) -> None:
    """Warns of states in the data that the policy does not read."""
    told = [] if rows is None else _told_first(rows)
    unread = [name for name in told if not (spec.reads_state(name) if spec.unit in ACTS else name in spec.space.states)]
    if unread and is_main():
        logger.warning(
            'the data tell of %s of the body, which this policy does not read. A model that writes actions as tokens '
            'reads those that supervised training names: action_cfgs.action_states.',
            ', '.join(unread),
        )


def _told_first(rows: ExampleDataset) -> list[str]:
    """The names of the states in the first rows of each source."""
    found: dict[str, None] = {}
    for conversations, _ in _first_rows(rows):
        found |= {name: None for turns in conversations for turn in turns for name in turn.get(STATE, ())}
    return list(found)


def _first_rows(rows: ExampleDataset) -> Iterator[tuple[list[Conversation], Mapping[str, Any]]]:
    """The conversations, and the meta record, of the first row of each source that makes some."""
    begin = 0
    for size in rows.sizes:
        for number in range(begin, min(begin + size, begin + PROBED)):
            made = rows.recorded(number)
            if not isinstance(made, Skipped):
                yield made[:2]
                break
        begin += size


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
    sizes = {name: len(running.least) for name, running in seen.values.items()}
    (first, size), *_ = sizes.items()
    other = next((name for name, own in sizes.items() if own != size), None)
    if other is not None:
        raise DataError(
            f'the actions of {first} have {size} numbers, and those of {other} {sizes[other]}: a policy has actions of '
            'one kind.'
        )
    dimensions = seen.one('dimensions') or tuple(f'x{number}' for number in range(size))
    return replace(space, dimensions=dimensions, cameras=cameras)
