"""What --help prints."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Mapping
from typing import Any

from align_anything.configs.annotations import describe_type
from align_anything.configs.keys import aliases_of
from align_anything.configs.redaction import shown
from align_anything.configs.schema import RunCfgs, groups_of

USAGE = (
    ('--help', 'Prints the common settings and stops; --help all prints every one.'),
    (
        '--dry_run [SIZE]',
        'Prepares the run, shows its first batch and what memory it takes, and stops before training. SIZE, such as '
        '80GiB, is the memory of the device to train on, where it is another than the one here.',
    ),
    (
        '--config FILE',
        'YAML file of settings by group, over those that ship. Several are merged in order, later over earlier.',
    ),
    ('--KEY VALUE', 'One setting. Also --group.KEY VALUE, --group:KEY VALUE and --KEY=VALUE, with - or _.'),
)


COMMON = (
    *('model_name_or_path', 'model_max_length', 'train_datasets', 'train_template', 'train_split', 'train_size'),
    *('eval_datasets', 'epochs', 'max_steps', 'learning_rate', 'per_device_train_batch_size'),
    *('gradient_accumulation_steps', 'gradient_checkpointing', 'bf16', 'ds_cfgs', 'seed', 'resume', 'use_lora'),
    *('output_dir', 'log_type'),
)
"""The settings that most runs give, which --help shows first."""


def render_help(
    run: str,
    schema: type[RunCfgs],
    values: Mapping[str, Mapping[str, Any]],
    origins: Mapping[str, str],
    own: Collection[str] = (),
    everything: bool = False,
) -> str:
    """Returns the help of one run as plain text: keys with type, value in force, where from, and meaning.

    First the common settings and those that are the algorithm's `own`; with `everything` the others too, by group.
    """
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    groups = groups_of(schema)
    keys = {(group, key): field for group, model in groups.items() for key, field in model.model_fields.items()}

    def told(group: str, key: str) -> list[str]:
        field = keys[group, key]
        value = values.get(group, {}).get(key, field.get_default(call_default_factory=True))
        origin = origins.get(f'{group}.{key}', 'default')
        meaning = f'{field.description} [{shown(value)}, {origin}]'
        return [f'  --{key}  {describe_type(field.annotation)}', *_wrapped(meaning, width)]

    lines = [f'Settings of {run}', '']
    for option, meaning in USAGE:
        lines += [f'  {option}', *_wrapped(meaning, width)]
    common = sorted((place for place in keys if place[1] in COMMON), key=lambda place: COMMON.index(place[1]))
    its_own = [place for place in keys if place[1] in own and place not in common]
    for title, places in {'Common settings': common, 'Settings of the algorithm': its_own}.items():
        if places:
            lines += ['', f'{title}:', *(line for place in places for line in told(*place))]
    others = {
        group: [key for key in model.model_fields if (group, key) not in (*common, *its_own)]
        for group, model in groups.items()
    }
    if not everything:
        return '\n'.join([*lines, '', f'{sum(map(len, others.values()))} further settings: --help all']) + '\n'
    for group, names in others.items():
        if names:
            lines += ['', f'{group}: {groups[group].__doc__}', *(line for key in names for line in told(group, key))]
    for name, alias in aliases_of(schema).items():
        lines += ['', f'  --{name}', *_wrapped(f'Other name of {alias.group}.{alias.key}: {alias.meaning}.', width)]
    return '\n'.join(lines) + '\n'


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent='      ', subsequent_indent='      ', break_on_hyphens=False)
