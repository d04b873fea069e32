"""The layers under the command line: files that ship, files the user names, the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align_anything.configs.annotations import parse_texts, shape_of
from align_anything.configs.incumbent import judge
from align_anything.configs.keys import KeyIndex, Location, UnknownKey
from align_anything.configs.yaml_text import parse_lines

TRAIN_FOLDER = Path(__file__).parent / 'train'
ENVIRONMENT_PREFIXES = ('ALIGN_ANYTHING__', 'ENV_PREFIX__')
BARE = {'logger_cfgs.overwrite_output_dir': True, 'train_cfgs.resume': 'auto'}
"""What settings that are given without a value on the command line stand for."""
ZERO_STAGE_FILE = 'ZERO_STAGE_FILE'
ARGUMENTS = {
    'model': 'model_name_or_path',
    'dataset': 'train_datasets',
    'eval_dataset': 'eval_datasets',
    'reward': 'reward_functions',
}
"""Arguments of the Python API whose settings have other names."""
PAIR_ORIGIN = 'pair '
STAGE_ORIGIN = 'stage '
STAGES = ('projection', 'joint')
PROJECTION_RATE, JOINT_RATE = 1e-3, 2e-5


def pair_layer(pair: str, defaults: Mapping[str, Any], index: KeyIndex) -> Layer:
    """Returns the settings that the table of pairs gives a pair, and the problems in them."""
    layer, origin = Layer(), f'{PAIR_ORIGIN}{pair}'
    for name, value in defaults.items():
        layer.put(name, value, origin, index)
    return layer


def stage_layer(stage: str, use_lora: bool, index: KeyIndex) -> Layer:
    """Returns the settings that a stage of training stands for."""
    layer, origin = Layer(), f'{STAGE_ORIGIN}{stage}'
    settings: dict[str, Any] = {
        'freeze_vision_tower': True,
        'freeze_audio_tower': True,
        'freeze_mm_proj': False,
        'freeze_generation': stage == 'projection',
        'freeze_language_model': stage == 'projection',
    }
    if stage == 'projection':
        settings['learning_rate'] = PROJECTION_RATE
    elif use_lora:
        # What is trained in full beside adapters needs the rate of full tuning.
        settings |= {'modules_to_save': ['mm_proj'], 'lr_groups': {'mm_proj': JOINT_RATE}}
    for name, value in settings.items():
        layer.put(name, value, origin, index)
    return layer


def read_settings_file(path: Path, shown_as: str, index: KeyIndex) -> Layer:
    """Returns the settings of a YAML file and the problems in it. `shown_as` is its name in messages."""
    layer = Layer()
    try:
        lines = parse_lines(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        layer.refuse(f'settings file {shown_as}', error)
        return layer
    for parts, value, line in lines:
        if value is None and parts[0] in index.fields and len(parts) == 1:
            continue
        layer.put('.'.join(parts), value, f'{shown_as} line {line}', index)
    return layer


def read_users_file(path: Path, name: str, index: KeyIndex) -> Layer:
    """Returns the settings of a file that the user names, with those of align-anything's own files that can be read.

    Keys that mean nothing here, and those that are null where null is no value, are left out; the notes tell of each.
    """
    layer = Layer(file=name)
    try:
        lines = parse_lines(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        layer.refuse(f'settings file {name}', error)
        return layer
    renamed: dict[str, Setting] = {}
    for parts, value, line in lines:
        origin = f'{name} line {line}'
        if value is None and parts[0] in index.fields and len(parts) == 1:
            continue
        try:
            location = index.locate('.'.join(parts))
        except UnknownKey as problem:
            _take_foreign(layer, parts, value, origin, index, problem, renamed)
            continue
        if value is None and not (location.rest or shape_of(location.annotation).null):
            layer.notes.append(f'{origin}: {location.path} is null, which is no value of it; it is left out.')
        else:
            layer.settings.append(Setting(location, value, origin))
    _agree(layer, renamed)
    return layer


def _take_foreign(
    layer: Layer,
    parts: tuple[str, ...],
    value: Any,
    origin: str,
    index: KeyIndex,
    problem: UnknownKey,
    renamed: dict[str, Setting],
) -> None:
    """Puts what `incumbent` makes of a key that this run does not have into `layer`, or into `renamed`."""
    verdict = judge(index.pair, parts[0] if len(parts) > 1 else '', parts[-1], value)
    if verdict is None or (verdict.name and not index.has(verdict.name)):
        layer.refuse(origin, problem)
    elif verdict.refusal:
        layer.problems.append(sentence(f'{origin}: {verdict.refusal}'))
    else:
        layer.notes.append(sentence(f'{origin}: {verdict.note}'))
        if verdict.name and value is not None:
            found = Setting(index.locate(verdict.name), verdict.value, origin)
            held = renamed.setdefault(found.location.path, found)
            if held.value != verdict.value:
                layer.problems.append(_contradiction(held, found))


def _agree(layer: Layer, renamed: Mapping[str, Setting]) -> None:
    """Puts settings under other names beside those of the file, where they say the same."""
    held = {setting.location.path: setting for setting in layer.settings}
    for path, setting in renamed.items():
        if path not in held:
            layer.settings.append(setting)
        elif held[path].value != setting.value:
            layer.problems.append(_contradiction(held[path], setting))


def _contradiction(one: Setting, other: Setting) -> str:
    return (
        f'{other.origin}: {other.location.path} is one setting here, but the file gives it twice: '
        f'{one.value} ({one.origin}) and {other.value}. Make them equal.'
    )


def read_environment(environ: Mapping[str, str], index: KeyIndex) -> Layer:
    """Returns the settings in `ZERO_STAGE_FILE` and `ALIGN_ANYTHING__GROUP__KEY`, and the problems in them.

    `ENV_PREFIX__GROUP__KEY`, the form of align-anything, is the same.
    """
    names = {}
    if ZERO_STAGE_FILE in environ:
        names[ZERO_STAGE_FILE] = 'train_cfgs.ds_cfgs'
    for variable in sorted(environ):
        prefix = next((prefix for prefix in ENVIRONMENT_PREFIXES if variable.startswith(prefix)), None)
        if prefix is not None:
            parts = variable.removeprefix(prefix).split('__')
            schema_parts = 2 if parts[0].lower() in index.fields else 1
            names[variable] = '.'.join([part.lower() for part in parts[:schema_parts]] + parts[schema_parts:])
    layer = Layer()
    for variable, name in names.items():
        layer.take(name, [environ[variable]], f'environment variable {variable}', index)
    return layer


@dataclass(frozen=True)
class Call:
    """The arguments of a function of the Python API that are settings."""

    function: str
    arguments: Mapping[str, Any]


def called_layer(call: Call | None, index: KeyIndex) -> Layer:
    """Returns the settings that are arguments of a call, and the problems in them."""
    layer = Layer()
    for name, value in () if call is None else call.arguments.items():
        layer.put(ARGUMENTS.get(name, name), _plain(value), f'{call.function}({name}=…)', index)
    return layer


def _plain(value: Any) -> Any:
    """The value as a settings file would hold it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def sentence(text: str) -> str:
    """Returns `text` with a full stop, unless it ends a sentence already."""
    return text if text.endswith(('.', '?', '!')) else f'{text}.'


def _read(texts: list[str], location: Location) -> Any:
    if not texts and location.path in BARE:
        return BARE[location.path]
    if not texts:
        raise ValueError(f"'{location.path}' has no value; write the value after the key")
    if any(not text.strip() for text in texts):
        raise ValueError(
            f"the value of '{location.path}' is empty, as an unset shell variable leaves it; give a value, or null"
        )
    return parse_texts(texts, location.annotation)


@dataclass(frozen=True)
class Setting:
    """One value for one key, and where it came from."""

    location: Location
    value: Any
    origin: str


@dataclass
class Layer:
    """The settings of one layer, what is wrong in it, and the keys whose value could not be read.

    `file` names the settings file of the user that it comes from, and `notes` say what was made of its keys.
    """

    settings: list[Setting] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    file: str = ''

    def put(self, name: str, value: Any, origin: str, index: KeyIndex) -> None:
        """Adds a value for the key called `name`."""
        try:
            location = index.locate(name)
        except UnknownKey as problem:
            self.refuse(origin, problem)
        else:
            self.settings.append(Setting(location, value, origin))

    def take(self, name: str, texts: list[str], origin: str, index: KeyIndex) -> list[str]:
        """Adds the setting that `texts` spell for the key called `name`; returns the texts it has no use for."""
        try:
            location = index.locate(name)
        except UnknownKey as problem:
            self.refuse(origin, problem)
            return []
        used = len(texts) if shape_of(location.annotation).takes_list else 1
        try:
            self.settings.append(Setting(location, _read(texts[:used], location), origin))
        except ValueError as problem:
            self.unread.add(f'{location.group}.{location.key}')
            self.refuse(origin, problem)
        return texts[used:]

    def refuse(self, origin: str, problem: Exception) -> None:
        """Adds a problem that `origin` has."""
        self.problems.append(sentence(f'{origin}: {problem}'))
