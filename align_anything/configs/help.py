"""What --help prints."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from align_anything.configs.annotations import describe_type
from align_anything.configs.keys import aliases_of
from align_anything.configs.redaction import shown
from align_anything.configs.schema import RunCfgs, groups_of

USAGE = (
    ('--help', 'Prints this and stops.'),
    ('--dry_run', 'Prepares the run, shows its first batch, and stops before training.'),
    (
        '--config FILE',
        'YAML file of settings by group, over those that ship. Several are merged in order, later over earlier.',
    ),
    ('--KEY VALUE', 'One setting. Also --group.KEY VALUE, --group:KEY VALUE and --KEY=VALUE, with - or _.'),
)


def render_help(
    run: str, schema: type[RunCfgs], values: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]
) -> str:
    """Returns the help of one run as plain text: every key with type, value in force, where from, and meaning."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [f'Settings of {run}', '']
    for option, meaning in USAGE:
        lines += [f'  {option}', *_wrapped(meaning, width)]
    for group, model in groups_of(schema).items():
        lines += ['', f'{group}: {model.__doc__}']
        for key, field in model.model_fields.items():
            value = values.get(group, {}).get(key, field.get_default(call_default_factory=True))
            origin = origins.get(f'{group}.{key}', 'default')
            lines += [f'  --{key}  {describe_type(field.annotation)}']
            lines += _wrapped(f'{field.description} [{shown(value)}, {origin}]', width)
    for name, alias in aliases_of(schema).items():
        lines += ['', f'  --{name}', *_wrapped(f'Other name of {alias.group}.{alias.key}: {alias.meaning}.', width)]
    return '\n'.join(lines) + '\n'


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent='      ', subsequent_indent='      ', break_on_hyphens=False)
