"""The action space of a run: that of its checkpoint, or what its settings and its data say before it trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm
from align_anything.configs.actions import ActionCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.actions import ActionSpace, Normalization, Statistics
from align_anything.core.distributed import all_gather_object, rank, world_size
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION, Media, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.source_loading import source_names
from align_anything.models.action_codes import act_in, at_the_tail
from align_anything.models.family import FamilySpec

logger = get_logger(__name__)

ALL = 'all'
"""What the statistics of several datasets together are called."""
TURNED = ('rotate', 'flip', 'size')
"""Options of decoding that change where things are in a picture."""
FIXED = ('names', 'dimensions', 'bins', 'binning', 'normalization', 'tokens')
"""What a checkpoint with an action space has said for good."""


@dataclass
class Done:
    """What rows do.

    Attributes:
        names: the named actions.
        values: numbers of each dataset, `(steps, dimensions)` each.
        pictures: what is done to pictures, as JSON.
    """

    names: set[str] = field(default_factory=set)
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)

    def add(self, part: Mapping[str, Any], name: str) -> None:
        """Takes a part of a turn of a dataset that is not decoded."""
        own = part.get(part['type'])
        if part['type'] == 'image':
            options = own.options if type(own) is Media else {}
            self.pictures.add(json.dumps({key: options[key] for key in TURNED if options.get(key)}, sort_keys=True))
        if part['type'] == ACTION:
            self.names.update(own.names)
            if own.values is not None:
                self.values.setdefault(own.dataset or name, []).append(own.values)


def acting(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm, rows: ExampleDataset | None = None) -> None:
    """Lets `spec` act as the run does: in the space of its checkpoint, or in one that settings and `rows` tell.

    Every rank calls it. `rows` are formatted and not decoded; without them nothing is learned.

    Raises SettingsError for settings that the checkpoint or the data contradict, ModelError where tokens of the
    vocabulary cannot stand for actions, and DataError for rows whose actions have nothing in common.
    """
    asked, source = cfgs.action_cfgs, cfgs.model_cfgs.model_name_or_path
    space = spec.space or _new_space(asked, source)
    _check_asked(asked, spec.space, source)
    done = None if rows is None or algorithm.task == 'prompt' else done_in(rows)
    if not space.names and not space.dimensions:
        space = _named_by(done, space, asked, source)
    names = [] if rows is None else source_names(rows.sources)
    space = _with_statistics(space, asked, done, algorithm, names[0] if len(names) == 1 else ALL)
    space = replace(space, pictures=_pictures(space, spec.space is not None, done, source))
    chunk = asked.action_chunk or space.chunk
    executed = asked.action_executed or (space.executed if spec.space is not None else chunk)
    space = replace(space, chunk=chunk, executed=min(executed, chunk) if asked.action_executed is None else executed)
    if space.tokens == 'tail' and not space.first_ids:
        space = at_the_tail(space, spec.tokenizer)
    problems = space.problems()
    if problems:
        raise SettingsError([f'action_cfgs: {problem}.' for problem in problems])
    if spec.unit == 'action':
        spec.act_in(space)
    else:
        act_in(spec, space)
    logger.info('actions: %s', told(space))


def done_in(rows: ExampleDataset) -> Done | None:
    """Returns what the turns of all rows do, each rank looking at its share; None of a stream."""
    if any(source.streamed for source in rows.sources):
        return None
    names = source_names(rows.sources)
    name = names[0] if len(names) == 1 else ALL
    mine = Done()
    for number in range(rank(), len(rows), world_size()):
        conversations = rows.formatted(number)
        for conversation in [] if isinstance(conversations, Skipped) else conversations:
            for part in (part for message in conversation for part in message['content']):
                mine.add(part, name)
    everyones = Done()
    for own in all_gather_object(mine):
        everyones.names |= own.names
        everyones.pictures |= own.pictures
        for dataset, values in own.values.items():
            everyones.values.setdefault(dataset, []).extend(values)
    return everyones


def statistics_of(values: Sequence[Tensor], normalization: Normalization, mask: Sequence[bool]) -> Statistics:
    """Returns the statistics of steps, `(steps, dimensions)` each, whatever the order of the steps."""
    steps = torch.cat(list(values)).double()
    if normalization == 'quantiles':
        low, high = torch.quantile(steps, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    else:
        low, high = steps.min(0).values, steps.max(0).values
    numbers = (low, high, steps.mean(0), steps.std(0, correction=0))
    return Statistics(*(tuple(own.tolist()) for own in numbers), mask=tuple(mask))


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
    return f'{what}; by {written}{ids}{bins}; {space.chunk} steps in a turn, {space.executed} of them done'


def _pictures(space: ActionSpace, is_known: bool, done: Done | None, source: Any) -> Mapping[str, Any]:
    """What is done to pictures: the same in all data of a policy, and in its environments."""
    found = [] if done is None else [json.loads(text) for text in sorted(done.pictures)]
    if len(found) > 1:
        raise DataError(
            f'some pictures of the training data are turned or scaled otherwise than others ({found[0]} and '
            f'{found[1]}): a policy sees all of them alike.'
        )
    if is_known and found and found[0] != dict(space.pictures):
        raise DataError(
            f'{source} saw pictures with {dict(space.pictures) or "nothing"} done to them, and the training data have '
            f'{found[0] or "nothing"}: they would be upside down to it. Give the template the same options.'
        )
    return found[0] if found else space.pictures


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


def _named_by(done: Done | None, space: ActionSpace, asked: ActionCfgs, source: Any) -> ActionSpace:
    """The space with the names, or the dimensions, that rows have."""
    if done is None or not (done.names or done.values):
        raise SettingsError(
            [
                f'action_cfgs.action_names: nothing says what {source} can do: give the names of its actions, or '
                'action_dimensions, or train it on recorded actions first.'
            ]
        )
    sizes = sorted({values.shape[1] for own in done.values.values() for values in own})
    if done.names and done.values or len(sizes) > 1:
        what = 'names and numbers' if done.names else f'{" and ".join(map(str, sizes))} numbers'
        raise DataError(f'the actions of the training data are {what}; a policy has actions of one kind.')
    if done.names:
        return replace(space, names=tuple(sorted(done.names)))
    return replace(space, dimensions=tuple(f'x{number}' for number in range(sizes[0])))


def _with_statistics(
    space: ActionSpace, asked: ActionCfgs, done: Done | None, algorithm: Algorithm, own: str
) -> ActionSpace:
    """The space with statistics of the data, where it has none, or lacks those that are asked for.

    Those that it has stay as they are, whatever it is trained on: the same number is the same token then. `own` is what
    the data are called.
    """
    if space.names or space.normalization == 'identity':
        return space
    wanted = asked.action_dataset
    if space.statistics and (wanted is None or wanted in space.statistics):
        return space if wanted is None else replace(space, dataset=wanted)
    if done is None or algorithm.task != 'supervised':
        raise SettingsError(
            [
                f'action_cfgs.action_dataset: there are no statistics of {wanted or "any dataset"} in the action space '
                f'({", ".join(sorted(space.statistics)) or "none"}), and these data tell none: train on recorded '
                'actions first.'
            ]
        )
    stray = sorted({*(asked.action_as_they_are or ())} - {*space.dimensions})
    if stray:
        raise SettingsError(
            [f"action_cfgs.action_as_they_are: no dimension is '{stray[0]}', but {', '.join(space.dimensions)}."]
        )
    kept = asked.action_as_they_are or ()
    mask = [name not in kept for name in space.dimensions]
    wrong = sorted({own.shape[1] for values in done.values.values() for own in values} - {len(space.dimensions)})
    if wrong or not done.values:
        raise DataError(
            f'the action space has {len(space.dimensions)} dimensions ({", ".join(space.dimensions)}), but the actions '
            f'of the training data have {wrong[0] if wrong else "names"}.'
        )
    made = {
        (wanted or name) if name == own else name: statistics_of(values, space.normalization, mask)
        for name, values in sorted(done.values.items())
    }
    dataset = wanted or (own if own in made else min(made) if len(made) == 1 else '')
    return replace(space, statistics={**space.statistics, **made}, dataset=dataset)
