"""Which key a name means: bare or dotted, old or new, of this run, of another algorithm, or of none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from align_anything.configs.aliases import ALIASES, MEANINGS, Alias
from align_anything.configs.annotations import describe_type, shape_of
from align_anything.configs.schema import AlgorithmCfgs, RunCfgs, groups_of

_SEPARATOR = re.compile('[.:]')


class UnknownKey(Exception):
    """A name that is no key of this run; the message says what to write instead."""


@dataclass(frozen=True)
class Location:
    """The key that a name means. `rest` leads to an entry inside a mapping; `annotation` is the type expected there."""

    group: str
    key: str
    rest: tuple[str, ...]
    annotation: Any
    convert: Callable[[Any], Any] | None = None

    @property
    def path(self) -> str:
        return '.'.join((self.group, self.key, *self.rest))


def aliases_of(schema: type[RunCfgs]) -> dict[str, Alias]:
    """Returns the other names that keys of a run have: those of all runs, and those that its algorithm gives."""
    fields = {group: set(model.model_fields) for group, model in groups_of(schema).items()}
    known = {name: alias for name, alias in ALIASES.items() if alias.key in fields.get(alias.group, ())}
    read_as = {}
    for base in reversed(groups_of(schema)['train_cfgs'].__mro__):
        known |= {name: Alias(_holder(key, fields), key) for name, key in vars(base).get('other_names', {}).items()}
        read_as |= {name: Alias(_holder(key, fields), key) for name, key in vars(base).get('read_as', {}).items()}
    taken = set().union(*fields.values())
    return {**{name: alias for name, alias in known.items() if name not in taken}, **read_as}


def _holder(key: str, fields: Mapping[str, set[str]]) -> str:
    return next(group for group, keys in fields.items() if key in keys)


class KeyIndex:
    """The keys of one run with their older names, and the keys of every other algorithm."""

    def __init__(self, schema: type[RunCfgs], run: str, known_algorithms: Mapping[str, type[AlgorithmCfgs]]) -> None:
        """`run` is the pair and the algorithm; `known_algorithms` are all algorithms with their settings, by name."""
        self.run = run
        self.pair = run.partition(' ')[0]
        self.known_algorithms = known_algorithms
        self.fields = {
            group: {key: field.annotation for key, field in model.model_fields.items()}
            for group, model in groups_of(schema).items()
        }
        self.aliases = aliases_of(schema)

    def holders(self, key: str) -> list[str]:
        """Returns the groups that have `key`."""
        return [group for group, keys in self.fields.items() if key in keys]

    def has(self, path: str) -> bool:
        """Whether `path` is a `group.key` of this run."""
        group, _, key = path.partition('.')
        return key in self.fields.get(group, {})

    def locate(self, name: str) -> Location:
        """Returns what `learning_rate`, `train-cfgs:learning_rate` or `lr_groups.vision_tower` means in this run.

        Raises UnknownKey for a name that means nothing, or two things.
        """
        first, *others = _SEPARATOR.split(name, maxsplit=1)
        first = first.replace('-', '_')
        if first not in self.fields:
            return self._locate_bare(first, others, name)
        if not others:
            key = next(iter(self.fields[first]))
            raise UnknownKey(f"'{first}' is a group; name one of its keys, for instance '{first}.{key}'")
        key, *rest = _SEPARATOR.split(others[0], maxsplit=1)
        key = key.replace('-', '_')
        if key in self.aliases and self.aliases[key].group == first:
            return self._located(first, key, rest)
        if key not in self.fields[first]:
            elsewhere = self.holders(key)
            if elsewhere:
                raise UnknownKey(f"'{key}' is a key of {elsewhere[0]}: write '{elsewhere[0]}.{key}'")
            if key in self.aliases:
                alias = self.aliases[key]
                raise UnknownKey(f"there is no key '{first}.{key}': write '{alias.group}.{alias.key}'")
            raise UnknownKey(self._unknown(key, f'{first}.{key}'))
        return self._located(first, key, rest)

    def _locate_bare(self, key: str, rest: list[str], name: str) -> Location:
        if key in self.aliases:
            return self._located(self.aliases[key].group, key, rest)
        holders = self.holders(key)
        if len(holders) > 1:
            forms = ' or '.join(f"'{group}.{key}'" for group in holders)
            raise UnknownKey(f"'{key}' is in {len(holders)} groups: write {forms}")
        if not holders:
            inner = _SEPARATOR.split(rest[0])[0].replace('-', '_') if rest else ''
            known = self.holders(inner) or self._algorithms_with(inner)
            raise UnknownKey(self._unknown(inner if known else key, name))
        return self._located(holders[0], key, rest)

    def _located(self, group: str, key: str, rest: list[str]) -> Location:
        alias = self.aliases.get(key)
        convert = alias.convert if alias else None
        key = alias.key if alias else key
        annotation = alias.annotation if convert else self.fields[group][key]
        if not rest:
            return Location(group, key, (), annotation, convert)
        shape = shape_of(annotation)
        entry = shape.entry
        if entry is None and shape.item is not None:
            entry = shape_of(shape.item).entry
        if entry is None:
            raise UnknownKey(f"'{group}.{key}' is {describe_type(annotation)} and has no key '{rest[0]}'")
        names = tuple(rest[0].split('.')) if shape_of(entry).anything else (rest[0],)
        return Location(group, key, names, entry, convert)

    def _algorithms_with(self, key: str) -> list[str]:
        return sorted(
            name
            for name, cfgs in self.known_algorithms.items()
            if key in cfgs.model_fields or any(key in group.model_fields for group in groups_of(cfgs.run_cfgs).values())
        )

    def _unknown(self, key: str, written: str) -> str:
        meant, advice = MEANINGS.get(key.lower(), ('', ''))
        if self.holders(meant):
            note = f' ({advice})' if advice else ''
            return f"there is no key '{written}'. Did you mean '{meant}' ({self.holders(meant)[0]}.{meant})?{note}"
        group = self.holders(key)
        if group:
            return f"there is no key '{written}'. Did you mean '{group[0]}.{key}'?"
        owners = self._algorithms_with(key)
        if owners:
            return f"'{key}' belongs to {', '.join(owners)}; a {self.run} run has no such key. Remove it"
        leaves = [leaf for keys in self.fields.values() for leaf in keys] + list(self.aliases)
        close = difflib.get_close_matches(key.lower(), [*leaves, *self.fields], n=1, cutoff=0.6)
        if not close:
            return f"there is no key '{written}'. --help lists every key of this run"
        if close[0] in self.fields:
            return f"there is no group '{key}'. Did you mean '{close[0]}'?"
        holders = self.holders(close[0]) or [self.aliases[close[0]].group]
        return f"there is no key '{written}'. Did you mean '{close[0]}' ({holders[0]}.{close[0]})?"
