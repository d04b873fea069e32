"""Makes the settings of one run out of all layers, or says everything that is wrong with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from align_anything.configs.annotations import describe_type, shape_of
from align_anything.configs.checks import check_together
from align_anything.configs.command_line import CommandLine, parse_command_line
from align_anything.configs.deepspeed_files import left_to_settings
from align_anything.configs.effects import Facts, effects_of, without_effect
from align_anything.configs.help import render_help
from align_anything.configs.keys import KeyIndex
from align_anything.configs.layers import (
    PAIR_ORIGIN,
    STAGE_ORIGIN,
    STAGES,
    TRAIN_FOLDER,
    Call,
    Layer,
    Setting,
    called_layer,
    pair_layer,
    read_environment,
    read_settings_file,
    read_users_file,
    sentence,
    stage_layer,
)
from align_anything.configs.redaction import shown
from align_anything.configs.schema import AlgorithmCfgs, RunCfgs, build_run_schema, groups_of
from align_anything.core.errors import SettingsError
from align_anything.core.files import trained_model_in
from align_anything.core.registry import nearest

Groups = TypeVar('Groups', bound=RunCfgs)
Own = TypeVar('Own', bound=AlgorithmCfgs)

DEFAULT_ORIGIN, SHIPPED_ORIGIN = 'default', 'configs/train/'
ADAPTER_ORIGIN = 'ten times '
ADAPTER_FACTOR = 10
CHECKPOINT = 'model_name_or_path'
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
    reads: Set[str] | None = None,
    writes: Set[str] | None = None,
    call: Call | None = None,
) -> Resolved:
    """Returns the settings of a run of `algorithm` on the modality `pair`.

    Layers, each over the one before: schema, `configs/train/<algorithm>.yaml`, `pair_defaults`,
    `configs/train/<pair>/<algorithm>.yaml`, every `--config` file in order, environment, command line, and the
    arguments of a `call` of the Python API. A file that does not ship counts as empty. `argv` comes without the
    program's name. With `--help` the first process writes the help to standard output, and SystemExit(0) is raised.
    `reads` are the kinds of media that the pair reads, and `writes` those that it writes, None for any.
    A setting that was given and can have no effect is a problem. In a file that also says why (`use_lora: False`), or
    where not settings decide but the pair or the algorithm, it is left out, and `notes` of the result say so.
    Raises SettingsError with all problems at once.
    """
    schema = build_run_schema(algorithm_cfgs)
    index = KeyIndex(schema, f'{pair} {algorithm}', known_algorithms)
    command_line = parse_command_line(argv, index)
    shipped = _shipped(pair, algorithm, index, pair_defaults or {})
    given = [*_given(command_line, environ, index), called_layer(call, index)]
    shipped += _stages(_laid(given), index)
    layers = _laid([*shipped, *given])
    if command_line.help:
        if environ.get('RANK', '0') == '0':
            run, own, everything = f'{pair} {algorithm}', algorithm_cfgs.model_fields, command_line.help == 'all'
            sys.stdout.write(render_help(run, schema, layers.values, layers.origins, own, everything))
        raise SystemExit(0)
    cfgs, problems = _validate(schema, layers, _laid(shipped), partial(Facts, reads=reads, writes=writes))
    problems = layers.problems + problems
    if command_line.device_gib is not None and not algorithm_cfgs.trains:
        problems.append(
            f'command line --dry_run: {algorithm} trains nothing whose memory it would tell; leave the size out.'
        )
    own = None
    if cfgs is not None:
        try:
            own = algorithm_cfgs(**{name: getattr(cfgs.train_cfgs, name) for name in algorithm_cfgs.model_fields})
        except ValidationError as error:
            problems += [f'train_cfgs: {_plain(item["msg"])}.' for item in error.errors()]
    if problems or cfgs is None or own is None:
        raise SettingsError(problems)
    cfgs, own = _with_adapter_rates(cfgs, own, layers)
    cfgs, own = _with_trained_models(cfgs, own, layers)
    layers.notes += left_to_settings(cfgs.train_cfgs.ds_cfgs)
    keys = ((group, key) for group in type(cfgs).model_fields for key in type(getattr(cfgs, group)).model_fields)
    origins = {f'{group}.{key}': DEFAULT_ORIGIN for group, key in keys}
    in_files = frozenset(layers.file_of)
    return Resolved(
        cfgs,
        own,
        origins | layers.origins,
        command_line.dry_run,
        tuple(layers.notes),
        in_files,
        command_line.device_gib,
    )


def offered(
    pair: str,
    algorithm: str,
    algorithm_cfgs: type[AlgorithmCfgs],
    known_algorithms: Mapping[str, type[AlgorithmCfgs]],
    pair_defaults: Mapping[str, Any] | None = None,
    reads: Set[str] | None = None,
    writes: Set[str] | None = None,
) -> list[Offered]:
    """Returns the settings that mean something in a run, with the values that ship; arguments as those of `resolve`.

    Left out are those that the pair or the algorithm leaves without an effect, whatever else is set.
    """
    schema = build_run_schema(algorithm_cfgs)
    index = KeyIndex(schema, f'{pair} {algorithm}', known_algorithms)
    shipped = _laid(_shipped(pair, algorithm, index, pair_defaults or {}))
    groups = groups_of(schema)
    facts = Facts(schema.model_validate(shipped.values), reads, writes)
    effects = effects_of(groups)
    return [
        Offered(
            group,
            key,
            field.annotation,
            field.description or '',
            shipped.values.get(group, {}).get(key, field.get_default(call_default_factory=True)),
            shipped.origins.get(f'{group}.{key}', DEFAULT_ORIGIN),
            len(index.holders(key)) == 1,
            key in algorithm_cfgs.model_fields,
        )
        for group, model in groups.items()
        for key, field in model.model_fields.items()
        if all(
            effect.by or f'{group}.{key}' in effect.spares or effect.holds(facts)
            for effect in effects[f'{group}.{key}']
        )
    ]


def _with_adapter_rates(cfgs: RunCfgs, own: Own, layers: Layers) -> tuple[RunCfgs, Own]:
    """Raises the default learning rates under LoRA: adapters bear, and need, a larger one than whole weights.

    Ten times is what Schulman et al., 2025 ("LoRA without regret") find best over models and tasks.
    """
    if not cfgs.lora_cfgs.use_lora:
        return cfgs, own
    train, rates = cfgs.train_cfgs, {}
    for key in type(train).adapter_rates:
        origin = layers.origins.get(f'train_cfgs.{key}', DEFAULT_ORIGIN)
        if not is_given(origin):
            full = getattr(train, key)
            rates[key] = float(f'{full * ADAPTER_FACTOR:.12g}')
            layers.origins[f'train_cfgs.{key}'] = f'{ADAPTER_ORIGIN}the rate of full tuning ({origin})'
            layers.notes.append(
                f'{key} is {rates[key]:g}, ten times that of full tuning ({full:g}), which is too low for adapters '
                f'(use_lora); give {key} for another.'
            )
    cfgs = cfgs.model_copy(update={'train_cfgs': train.model_copy(update=rates)})
    return cfgs, own.model_copy(update={key: rate for key, rate in rates.items() if key in type(own).model_fields})


def _with_trained_models(cfgs: RunCfgs, own: Own, layers: Layers) -> tuple[RunCfgs, Own]:
    """Reads the output folder of a run, given as a checkpoint, as the trained model in it."""
    groups, in_own = {}, {}
    for name in type(cfgs).model_fields:
        group, found = getattr(cfgs, name), {}
        for key in type(group).model_fields:
            value = getattr(group, key) if key.endswith(CHECKPOINT) else None
            trained = None if value is None else trained_model_in(value)
            if trained is not None:
                found[key] = str(trained)
                layers.notes.append(
                    f'{name}.{key}: {value} is the output folder of a run; its trained model is {trained}.'
                )
        groups[name] = group.model_copy(update=found)
        in_own |= {key: path for key, path in found.items() if key in type(own).model_fields}
    return cfgs.model_copy(update=groups), own.model_copy(update=in_own)


def _shipped(pair: str, algorithm: str, index: KeyIndex, pair_defaults: Mapping[str, Any]) -> list[Layer]:
    """The layers that come with the package, the lowest first."""

    def file(name: str) -> Layer:
        path = TRAIN_FOLDER / name
        return read_settings_file(path, f'{SHIPPED_ORIGIN}{name}', index) if path.is_file() else Layer()

    return [file(f'{algorithm}.yaml'), pair_layer(pair, pair_defaults, index), file(f'{pair}/{algorithm}.yaml')]


def _given(command_line: CommandLine, environ: Mapping[str, str], index: KeyIndex) -> list[Layer]:
    """The layers that the user gives, the lowest first."""
    files = [read_users_file(Path(name), name, index) for name in command_line.config_files]
    return [*files, read_environment(environ, index), command_line.layer]


def _stages(given: Layers, index: KeyIndex) -> list[Layer]:
    """The layer that the stage of training stands for, below what the user gives one by one."""
    stage = given.values.get('train_cfgs', {}).get('stage')
    use_lora = given.values.get('lora_cfgs', {}).get('use_lora', False)
    return [stage_layer(stage, use_lora is True, index)] if stage in STAGES else []


def _laid(given: Sequence[Layer]) -> Layers:
    layers = Layers()
    for layer in given:
        layers.lay(layer)
    return layers


def _validate(
    schema: type[RunCfgs], layers: Layers, shipped: Layers, facts: Callable[[RunCfgs], Facts]
) -> tuple[RunCfgs | None, list[str]]:
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
    hidden = broken | layers.unread
    found = _without_effect(cfgs, schema, layers, shipped, facts, hidden)
    if not broken and found.left_out:
        cfgs = schema.model_validate(layers.values)
    for keys, problem in check_together(cfgs, facts(cfgs).writes):
        found.problems.pop(keys[0], None)
        if not hidden.intersection(keys):
            group, key = keys[0].split('.')
            value = getattr(getattr(cfgs, group), key)
            problems.append(sentence(f'{_headline(keys[0], value, layers.origins)}: {problem}'))
    problems += found.problems.values()
    return (None if problems else cfgs), problems


def _without_effect(
    cfgs: RunCfgs,
    schema: type[RunCfgs],
    layers: Layers,
    shipped: Layers,
    facts: Callable[[RunCfgs], Facts],
    hidden: Set[str],
) -> Effectless:
    """Takes settings of files that have no effect out of `layers` where it may, and says what of the others."""
    found = Effectless()
    before = None
    for path, effect in without_effect(facts(cfgs)):
        if path in hidden or not is_given(layers.origins.get(path, DEFAULT_ORIGIN)):
            continue
        said = f'{path} ({layers.origins[path]}): {effect.why}'
        file = layers.file_of.get(path)
        if file is None:
            found.problems[path] = said
            continue
        before = before or schema.model_validate(shipped.values)
        if Facts(cfgs).value(path) == Facts(before).value(path):
            continue
        if effect.by and layers.keys_of[file].isdisjoint(effect.by):
            found.problems[path] = said
            continue
        found.left_out = True
        layers.take_back(path, shipped)
        layers.notes.append(f'{said.partition("; ")[0]}; it is left out.')
    return found


def _describe(schema: type[RunCfgs], path: tuple[str, ...], items: list[Any], layers: Layers) -> str:
    """Returns one sentence for all complaints about one key."""
    if not path:
        # Raised while defaults were made: nothing that the user gave is at fault.
        return f'the defaults of the algorithm do not go together: {_plain(items[0]["msg"])}. Mend its class.'
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
class Effectless:
    """What is wrong with settings that have no effect, by `group.key`, and whether some were left out."""

    problems: dict[str, str] = field(default_factory=dict)
    left_out: bool = False


@dataclass
class Layers:
    """Raw values by group and key, where each came from, the problems met, and the keys that could not be read.

    `file_of` names the user's file that the value of a key is from, and `keys_of` holds the keys of each such file.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    file_of: dict[str, str] = field(default_factory=dict)
    keys_of: dict[str, set[str]] = field(default_factory=dict)

    def lay(self, layer: Layer) -> None:
        """Puts one layer over what is there. A key that the layer gives twice is a problem."""
        self.problems.extend(layer.problems)
        self.unread |= layer.unread
        self.notes.extend(layer.notes)
        given: dict[str, str] = {}
        for setting in layer.settings:
            path = setting.location.path
            if path in given:
                self.problems.append(f"{setting.origin}: '{path}' was given already by {given[path]}; remove one.")
                continue
            given[path] = setting.origin
            self._put(setting)
            key = f'{setting.location.group}.{setting.location.key}'
            self.file_of.pop(key, None)
            if layer.file:
                self.file_of[key] = layer.file
                self.keys_of.setdefault(layer.file, set()).add(key)

    def take_back(self, path: str, below: Layers) -> None:
        """Gives the setting `group.key` the value that it has in `below`, or none."""
        group, key = path.split('.')
        for name in [name for name in self.origins if name == path or name.startswith(f'{path}.')]:
            del self.origins[name]
        del self.values[group][key]
        if key in below.values.get(group, {}):
            self.values[group][key] = below.values[group][key]
            self.origins[path] = below.origins[path]

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
class Offered:
    """A setting that a run has.

    Attributes:
        group, key: its place.
        annotation: its type.
        description: what it means.
        value, origin: what it is where nothing is given, and where that comes from.
        is_alone: whether no other group has the key, so that it can be given without its group.
        is_own: whether it is the algorithm's own.
    """

    group: str
    key: str
    annotation: Any
    description: str
    value: Any
    origin: str
    is_alone: bool
    is_own: bool

    @property
    def path(self) -> str:
        """The place as it is written."""
        return f'{self.group}.{self.key}'


@dataclass(frozen=True)
class Resolved(Generic[Groups, Own]):
    """The settings of a run.

    Attributes:
        cfgs: all groups; `train_cfgs` holds the algorithm's own fields too.
        algorithm: the algorithm's own settings, an instance of its class.
        origins: where each `group.key` came from.
        dry_run: whether to stop before training.
        notes: what the user should be told of what became of settings, a sentence each.
        in_files: each `group.key` whose value is from a file of the user.
        device_gib: the memory of a device by which a dry run judges, None for that of the one it runs on.
    """

    cfgs: Groups
    algorithm: Own
    origins: dict[str, str]
    dry_run: bool
    notes: tuple[str, ...] = ()
    in_files: frozenset[str] = frozenset()
    device_gib: float | None = None

    def given(self, path: str) -> bool:
        """Whether the user gave the setting `group.key`, and not the package alone: its schema, a file, a pair."""
        return is_given(self.origins[path])


def is_given(origin: str) -> bool:
    """Whether a user gave what comes from there."""
    return origin != DEFAULT_ORIGIN and not origin.startswith(
        (SHIPPED_ORIGIN, PAIR_ORIGIN, ADAPTER_ORIGIN, STAGE_ORIGIN)
    )
