"""Makes the settings of one run out of all layers, or says everything that is wrong with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from align_anything.configs.annotations import describe_type, shape_of
from align_anything.configs.checks import check_together
from align_anything.configs.command_line import CommandLine, parse_command_line
from align_anything.configs.help import render_help
from align_anything.configs.keys import KeyIndex
from align_anything.configs.layers import (
    PAIR_ORIGIN,
    TRAIN_FOLDER,
    Layer,
    Setting,
    pair_layer,
    read_environment,
    read_settings_file,
    sentence,
)
from align_anything.configs.redaction import shown
from align_anything.configs.schema import AlgorithmCfgs, RunCfgs, build_run_schema
from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest

Groups = TypeVar('Groups', bound=RunCfgs)
Own = TypeVar('Own', bound=AlgorithmCfgs)

DEFAULT_ORIGIN, SHIPPED_ORIGIN = 'default', 'configs/train/'
_SAYS_THE_BOUND = (
    'greater_than',
    'less_than',
    'too_short',
    'too_long',
    'value_error',
    'finite_number',
    'int_from_float',
)


def resolve(
    pair: str,
    algorithm: str,
    algorithm_cfgs: type[AlgorithmCfgs],
    known_algorithms: Mapping[str, type[AlgorithmCfgs]],
    argv: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    pair_defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """Returns the settings of a run of `algorithm` on the modality `pair`.

    Layers, each over the one before: schema, `configs/train/<algorithm>.yaml`, `pair_defaults`,
    `configs/train/<pair>/<algorithm>.yaml`, every `--config` file in order, environment, command line. A file that does
    not ship counts as empty. `argv` comes without the program's name. With `--help`
    the first process writes the help to standard output, and SystemExit(0) is raised.
    Raises SettingsError with all problems at once.
    """
    schema = build_run_schema(algorithm_cfgs)
    index = KeyIndex(schema, f'{pair} {algorithm}', known_algorithms)
    command_line = parse_command_line(argv, index)
    layers = _gather(pair, algorithm, command_line, environ, index, pair_defaults or {})
    if command_line.help:
        if environ.get('RANK', '0') == '0':
            run, own, everything = f'{pair} {algorithm}', algorithm_cfgs.model_fields, command_line.help == 'all'
            sys.stdout.write(render_help(run, schema, layers.values, layers.origins, own, everything))
        raise SystemExit(0)
    cfgs, problems = _validate(schema, layers)
    problems = layers.problems + problems
    own = None
    if cfgs is not None:
        try:
            own = algorithm_cfgs(**{name: getattr(cfgs.train_cfgs, name) for name in algorithm_cfgs.model_fields})
        except ValidationError as error:
            problems += [f'train_cfgs: {_plain(item["msg"])}.' for item in error.errors()]
    if problems or cfgs is None or own is None:
        raise SettingsError(problems)
    keys = ((group, key) for group in type(cfgs).model_fields for key in type(getattr(cfgs, group)).model_fields)
    origins = {f'{group}.{key}': DEFAULT_ORIGIN for group, key in keys}
    return Resolved(cfgs, own, origins | layers.origins, command_line.dry_run)


def _gather(
    pair: str,
    algorithm: str,
    command_line: CommandLine,
    environ: Mapping[str, str],
    index: KeyIndex,
    pair_defaults: Mapping[str, Any],
) -> Layers:
    def shipped(name: str) -> Layer:
        path = TRAIN_FOLDER / name
        return read_settings_file(path, f'{SHIPPED_ORIGIN}{name}', index) if path.is_file() else Layer()

    layers = Layers()
    layers.lay(shipped(f'{algorithm}.yaml'))
    layers.lay(pair_layer(pair, pair_defaults, index))
    layers.lay(shipped(f'{pair}/{algorithm}.yaml'))
    for name in command_line.config_files:
        layers.lay(read_settings_file(Path(name), name, index))
    layers.lay(read_environment(environ, index))
    layers.lay(command_line.layer)
    return layers


def _validate(schema: type[RunCfgs], layers: Layers) -> tuple[RunCfgs | None, list[str]]:
    """Returns the settings, or None, and the problems. Broken keys do not hide what is wrong with the others."""
    problems: list[str] = []
    broken: set[str] = set()
    try:
        cfgs = schema.model_validate(layers.values)
    except ValidationError as error:
        grouped: dict[tuple[str, ...], list[Any]] = {}
        for item in error.errors():
            grouped.setdefault(tuple(str(part) for part in item['loc'][:2]), []).append(item)
        for path, items in grouped.items():
            broken.add('.'.join(path))
            problems.append(_describe(schema, path, items, layers))
        sound = {
            group: {key: value for key, value in keys.items() if f'{group}.{key}' not in broken}
            for group, keys in layers.values.items()
        }
        try:
            cfgs = schema.model_validate(sound)
        except ValidationError:
            return None, problems
    for keys, problem in check_together(cfgs):
        if not (broken | layers.unread).intersection(keys):
            group, key = keys[0].split('.')
            value = getattr(getattr(cfgs, group), key)
            problems.append(sentence(f'{_headline(keys[0], value, layers.origins)}: {problem}'))
    return (None if problems else cfgs), problems


def _describe(schema: type[RunCfgs], path: tuple[str, ...], items: list[Any], layers: Layers) -> str:
    """Returns one sentence for all complaints about one key."""
    if len(path) < 2:
        return f'{path[0]}: {_plain(items[0]["msg"])}.'
    group, key = path
    annotation = schema.model_fields[group].annotation.model_fields[key].annotation
    value = layers.values[group][key]
    headline = f'{_headline(f"{group}.{key}", value, layers.origins)}:'
    bound = next((item for item in items if item['type'].startswith(_SAYS_THE_BOUND)), None)
    if bound is not None:
        return f'{headline} {_plain(bound["msg"])}.'
    choices = shape_of(annotation).choices
    hint = nearest(value, list(choices)) if isinstance(value, str) else ''
    return f'{headline} expected {describe_type(annotation)}.{hint}'


def _headline(path: str, value: Any, origins: Mapping[str, str]) -> str:
    return f'{path} = {shown(value)} ({origins.get(path, DEFAULT_ORIGIN)})'


def _plain(message: str) -> str:
    return message.removeprefix('Value error, ').replace('Input should be', 'must be').rstrip('.')


@dataclass
class Layers:
    """Raw values by group and key, where each came from, the problems met, and the keys that could not be read."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    def lay(self, layer: Layer) -> None:
        """Puts one layer over what is there. A key that the layer gives twice is a problem."""
        self.problems.extend(layer.problems)
        self.unread |= layer.unread
        given: dict[str, str] = {}
        for setting in layer.settings:
            path = setting.location.path
            if path in given:
                self.problems.append(f"{setting.origin}: '{path}' was given already by {given[path]}; remove one.")
                continue
            given[path] = setting.origin
            self._put(setting)

    def _put(self, setting: Setting) -> None:
        location = setting.location
        value = location.convert(setting.value) if location.convert else setting.value
        group = self.values.setdefault(location.group, {})
        held = group.get(location.key)
        if location.rest and isinstance(held, list):
            self.problems.append(
                f"{setting.origin}: '{location.group}.{location.key}' is a list there "
                f'({self.origins[f"{location.group}.{location.key}"]}); give the whole list.'
            )
            return
        for part in reversed(location.rest):
            value = {part: value}
        group[location.key] = _merged(held, value)
        self.origins[f'{location.group}.{location.key}'] = setting.origin
        self.origins[location.path] = setting.origin


def _merged(below: Any, above: Any) -> Any:
    """Returns `above` over `below`: mappings are joined, an empty mapping empties, all else replaces."""
    if isinstance(below, dict) and isinstance(above, dict) and above:
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above


@dataclass(frozen=True)
class Resolved(Generic[Groups, Own]):
    """The settings of a run.

    Attributes:
        cfgs: all groups; `train_cfgs` holds the algorithm's own fields too.
        algorithm: the algorithm's own settings, an instance of its class.
        origins: where each `group.key` came from.
        dry_run: whether to stop before training.
    """

    cfgs: Groups
    algorithm: Own
    origins: dict[str, str]
    dry_run: bool

    def given(self, path: str) -> bool:
        """Whether the user gave the setting `group.key`, and not the package alone: its schema, a file, a pair."""
        origin = self.origins[path]
        return origin != DEFAULT_ORIGIN and not origin.startswith((SHIPPED_ORIGIN, PAIR_ORIGIN))
