"""The list of dataset templates."""

from __future__ import annotations

import json

from rich.table import Table
from rich.text import Text

from align_anything.datasets.formatters.base import HOOKS, BaseFormatter, usable_templates


def described_templates() -> list[dict[str, object]]:
    """Returns name, meaning, hooks, and options with their defaults of every template, by name.

    Options that all templates have are left out.
    """
    common = BaseFormatter.option_defaults()
    found = []
    for name, template in usable_templates().items():
        options = {key: value for key, value in template.option_defaults().items() if key not in common}
        found.append(
            {
                'name': name,
                'meaning': (template.__doc__ or '').strip().split('\n')[0],
                'hooks': [hook for hook in HOOKS if hook in template.hooks()],
                'options': options,
            }
        )
    return found


def templates_as_json() -> str:
    """Returns the list as JSON: `templates`, and `common_options` that every template has."""
    content = {'templates': described_templates(), 'common_options': BaseFormatter.option_defaults()}
    return json.dumps(content, indent=2, ensure_ascii=False)


def templates_table() -> Table:
    """Returns the list as a table; hooks without what all their names have in common."""
    table = Table('template', 'rows', 'hooks', 'options', title='Templates', show_lines=True)
    for entry in described_templates():
        hooks = [hook.removeprefix('format_').removesuffix('_sample') for hook in entry['hooks']]
        options = '\n'.join(f'{name}: {value!r}' for name, value in entry['options'].items())
        table.add_row(*(Text(text) for text in (entry['name'], entry['meaning'], '\n'.join(hooks), options)))
    table.caption = 'all templates also take: ' + ', '.join(BaseFormatter.option_defaults())
    return table
