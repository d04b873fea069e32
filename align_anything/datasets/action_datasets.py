"""Whose statistics hold for the actions and states of each dataset of a run: one space has those of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from align_anything.configs.actions import ActionCfgs
from align_anything.core.actions import ActionSpace, Statistics
from align_anything.core.errors import DataError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.registry import nearest
from align_anything.datasets.action_statistics import Seen, published_statistics
from align_anything.datasets.dataset import Source
from align_anything.datasets.running_statistics import Running
from align_anything.datasets.source_loading import source_names

logger = get_logger(__name__)


def datasets_of(sources: Sequence[Source], space: ActionSpace, asked: ActionCfgs, teaches: bool) -> list[str]:
    """Returns the dataset whose statistics hold for each source; empty where nothing says which.

    A source has those of its own name. A single one may have those of another, as `action_dataset` says; it has those
    of the space where that has some already and none of its name, since the same number has to be the same token.
    Several sources that the policy learns from (`teaches`) get some of their own.
    """
    own, known = source_names(sources), space.datasets
    if len(own) == 1 and asked.action_dataset:
        return [asked.action_dataset]
    usual = asked.action_dataset or usual_dataset(space)
    adds = teaches and (len(own) > 1 or not known)
    return [name if name in known or adds else usual for name in own]


def usual_dataset(space: ActionSpace) -> str:
    """Returns the dataset that a space goes by where nothing else is said: the one it names, or the only one."""
    return space.dataset or (space.datasets[0] if len(space.datasets) == 1 else '')


def lacking(space: ActionSpace, names: Sequence[str]) -> list[str]:
    """Returns those of the datasets of which the space lacks statistics; '' for any, where it has none at all."""
    tables = [
        *([space.statistics] if is_normalised(space) else []),
        *([space.state_statistics] if space.states else []),
    ]
    return [name for name in dict.fromkeys(names) if any(name not in table if name else not table for table in tables)]


def is_normalised(space: ActionSpace) -> bool:
    """Whether statistics hold for the actions of the space."""
    return not space.names and space.normalization != 'identity'


def with_published(space: ActionSpace, asked: ActionCfgs) -> ActionSpace:
    """Returns the space with the statistics of published files, which stand in for those that it has.

    Raises DataError for a file that has none.
    """
    for file in asked.action_statistics or ():
        found = published_statistics(file, space.normalization)
        changed = sorted(name for name, own in found.items() if space.statistics.get(name, own) != own)
        instead = f', in place of those that the checkpoint has of {", ".join(changed)}' if changed else ''
        logger.info('statistics of actions: %s of %s%s', ', '.join(sorted(found)), file, instead)
        space = replace(space, statistics={**space.statistics, **found})
    return space


def with_statistics(
    space: ActionSpace, asked: ActionCfgs, seen: Seen | None, names: Sequence[str], teaches: bool
) -> ActionSpace:
    """Returns the space with statistics of the datasets in `names` that it has none of, by what was `seen` of them.

    Those that it has stay as they are, whatever it is trained on. Raises SettingsError where there are none and nothing
    tells them, DataError for actions of another number of dimensions.
    """
    missing = lacking(space, names)
    if not missing:
        return space
    untold = [name for name in missing if seen is None or (is_normalised(space) and name not in seen.values)]
    if untold or not teaches:
        missing = untold or missing
        there = ', '.join(space.datasets) or 'none'
        hint = nearest(missing[0], list(space.datasets))
        raise SettingsError(
            [
                f'action_cfgs.action_dataset: there are no statistics of {missing[0] or "any dataset"} in the action '
                f'space ({there}), '
                f'and these data tell none: train on recorded actions first.{hint}'
            ]
        )
    statistics, states = dict(space.statistics), dict(space.state_statistics)
    for name in missing:
        if is_normalised(space) and name not in statistics:
            statistics[name] = _of_actions(space, asked, seen.values[name], name)
        if space.states and name not in states:
            states[name] = _of_states(space, seen.states.get(name, {}), name)
    logger.info('actions of %s: %s', ', '.join(missing), seen.written())
    found = replace(space, statistics=statistics, state_statistics=states)
    return replace(found, dataset=usual_dataset(found))


def _of_actions(space: ActionSpace, asked: ActionCfgs, running: Running, name: str) -> Statistics:
    kept = asked.action_as_they_are or ()
    stray = sorted({*kept} - {*space.dimensions})
    if stray:
        raise SettingsError(
            [f"action_cfgs.action_as_they_are: no dimension is '{stray[0]}', but {', '.join(space.dimensions)}."]
        )
    summary = running.summary()
    if len(summary.mean) != len(space.dimensions):
        raise DataError(
            f'the action space has {len(space.dimensions)} dimensions ({", ".join(space.dimensions)}), but the actions '
            f'of the training data ({name}) have {len(summary.mean)}.'
        )
    return summary.statistics(space.normalization, [dimension not in kept for dimension in space.dimensions])


def _of_states(space: ActionSpace, told: Mapping[str, Running], name: str) -> Statistics:
    missing = [state for state in space.states if state not in told]
    if missing:
        hint = nearest(missing[0], list(told))
        raise SettingsError(
            [
                f"action_cfgs.action_states: {name} tells no state '{missing[0]}'.{hint} It tells: "
                f'{", ".join(told) or "none"}.'
            ]
        )
    several = [told[state].summary() for state in space.states]
    columns = (
        tuple(number for summary in several for number in getattr(summary, column))
        for column in ('low', 'high', 'mean', 'std')
    )
    return Statistics(*columns, mask=(True,) * sum(len(summary.mean) for summary in several))


def with_dataset(space: ActionSpace, asked: ActionCfgs, names: Sequence[str], speaks: bool) -> ActionSpace:
    """Returns the space that goes by the dataset that was asked for, or by the only one of `names`.

    `names` are those of the data that the policy learns from; none where it only speaks. Raises SettingsError for a
    dataset that there is not, and where there are several and none is named by which a policy that `speaks` could, or
    which is that of some data.
    """
    wanted, known = asked.action_dataset, space.datasets
    if not known:
        if wanted and not is_normalised(space):
            raise SettingsError(
                ['action_cfgs.action_dataset: actions of this policy are not normalised, by no dataset; leave it out.']
            )
        return space
    if wanted and wanted not in known:
        raise SettingsError(
            [
                f'action_cfgs.action_dataset: there are no statistics of {wanted} in the action space '
                f'({", ".join(known)}).{nearest(wanted, list(known))}'
            ]
        )
    if len(known) == 1 and not wanted:
        return space
    usual = wanted or (names[0] if len({*names}) == 1 else '' if names else space.dataset)
    if not usual and (speaks or '' in names):
        raise SettingsError([several(known)])
    return replace(space, dataset=usual)


def several(known: Sequence[str]) -> str:
    """Returns what is said where a dataset has to be named."""
    return (
        'action_cfgs.action_dataset: the action space has statistics of several datasets, and nothing says which '
        f'un-normalise the actions: name one of {", ".join(known)}.'
    )


def by_dataset(sources: Sequence[Source], names: Sequence[str], space: ActionSpace) -> list[Source]:
    """Returns the sources with the name of the dataset whose statistics hold for each.

    Raises SettingsError for one that has none, such as evaluation data of another name beside several datasets.
    """
    if not (space.datasets and (is_normalised(space) or space.states)):
        return list(sources)
    unknown = [source.name for source, name in zip(sources, names, strict=True) if not name]
    if unknown:
        raise SettingsError([f'{several(space.datasets)} Those of {unknown[0]} are of none of these.'])
    return [replace(source, statistics=name) for source, name in zip(sources, names, strict=True)]
