"""What `align-anything compose` is asked for: a file, options, and settings of single kinds of media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.configs.compose import ComposeCfgs, read_compose
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import SettingsError

ORIGIN = 'compose'


def compose_settings(given: Mapping[str, Any], dotted: Sequence[str], config: Path | None) -> ComposeCfgs:
    """Returns what to compose: what `config` says, `given` over it, and over that `dotted`: `--image.select patch`.

    Raises SettingsError with all that is wrong.
    """
    values = _file(config) if config is not None else {}
    for key, value in given.items():
        if value is None or value == []:
            continue
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        held = values.get(key)
        values[key] = {**held, 'encoder': value} if isinstance(held, dict) else value
    words = list(dotted)
    while words:
        name = words.pop(0)
        name, equals, text = name.partition('=')
        key, _, rest = name.removeprefix('--').partition('.')
        if not name.startswith('--') or not rest or (not equals and not words):
            raise SettingsError(
                [f'command line: {name} is no setting; one of a kind of media is --image.select patch.']
            )
        held = values.setdefault(key.replace('-', '_'), {})
        if not isinstance(held, dict):
            held = values[key] = {'encoder': held}
        held[rest.replace('-', '_')] = parse_yaml(text if equals else words.pop(0))
    return read_compose(values, ORIGIN)


def _file(path: Path) -> dict[str, Any]:
    try:
        found = parse_yaml(path.read_text(encoding='utf-8')) or {}
    except (OSError, ValueError) as error:
        raise SettingsError([f'settings file {path}: {error}.']) from error
    if not isinstance(found, dict):
        raise SettingsError([f'settings file {path} must hold a mapping, such as language_model: FOLDER.'])
    return found
