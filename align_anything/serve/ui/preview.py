"""What would be run: the command, its settings as a file, and all that is wrong with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from align_anything.algorithms.base import ALGORITHMS
from align_anything.configs.redaction import without_secrets
from align_anything.configs.resolve import Resolved
from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.errors import SettingsError
from align_anything.serve.ui.paths import Root
from align_anything.trainers.launch import resolved_of
from align_anything.trainers.leaves import find_run

ENVIRONMENT = 'environment variable'
BREAK = ' \\\n    '


@dataclass(frozen=True)
class Preview:
    """A run before it is started.

    Attributes:
        command: its words, those of the launcher first.
        settings: the words of its settings.
        problems: why it cannot be started; none where it can.
        notes: what became of its settings.
        yaml: what was given, as a file for `--config`.
        output_dir: where it writes.
    """

    command: Sequence[str]
    settings: Sequence[str]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    yaml: str = ''
    output_dir: str = ''


@dataclass(frozen=True)
class Asked:
    """What is to be run.

    Attributes:
        pair, algorithm: their names.
        settings: words as the command line takes them.
        devices: how many devices of this machine it takes; None for all.
    """

    pair: str
    algorithm: str
    settings: Sequence[str] = field(default=())
    devices: int | None = None

    @property
    def command(self) -> list[str]:
        """The words of the launcher and of the settings."""
        return [*launcher(self.pair, self.algorithm, self.devices), *self.settings]


def launcher(pair: str, algorithm: str, devices: int | None = None) -> list[str]:
    """Returns the words that start a run on the devices of this machine, without its settings."""
    number = [] if devices is None else ['--num_gpus', str(devices)]
    if algorithm in ALGORITHMS.plugins:
        # Those of installed packages have no modules of their own here.
        return ['deepspeed', *number, '--module', 'align_anything.cli', 'train', pair, algorithm]
    return ['deepspeed', *number, '--module', f'align_anything.trainers.{pair}.{algorithm}']


def preview(asked: Asked, root: Root) -> Preview:
    """Returns what would be run, with the errors that the command would end with, and those of paths outside `root`."""
    try:
        resolved = resolve_in(asked, root)
    except SettingsError as error:
        return Preview(asked.command, asked.settings, problems=error.problems)
    output_dir = resolved.cfgs.logger_cfgs.output_dir or ''
    return Preview(asked.command, asked.settings, (), resolved.notes, given_yaml(asked, resolved), output_dir)


def resolve_in(asked: Asked, root: Root) -> Resolved:
    """Returns the settings of a run. Raises SettingsError as the command would, and for paths outside of `root`."""
    if any(word.partition('=')[0] in ('--help', '-h') for word in asked.settings):
        raise SettingsError(['the page shows the help beside each setting; leave --help out.'])
    problems = outside(asked.settings, root)
    if problems:
        raise SettingsError(problems)
    resolved = resolved_of(*find_run(asked.pair, asked.algorithm), asked.settings, os.environ)
    problems = root.problems(asked_for(resolved))
    if problems:
        raise SettingsError(problems)
    return resolved


def outside(words: Sequence[str], root: Root) -> list[str]:
    """Returns what is wrong with the paths on a command line as it stands, before any file of them is opened."""
    name, found = '', []
    for word in words:
        text = word
        if word.startswith('--'):
            name, _, text = word.partition('=')
        problem = root.problem_with(text) if text else ''
        found += [f'{name}: {problem}'] if problem else []
    return found


def asked_for(resolved: Resolved) -> dict[str, object]:
    """Returns the settings that came over the page: those given, but for those of the environment."""
    found = given(resolved)
    return {path: value for path, value in found.items() if not resolved.origins[path].startswith(ENVIRONMENT)}


def given(resolved: Resolved) -> dict[str, object]:
    """Returns the settings that the user gave, by `group.key`."""
    paths = [f'{group}.{key}' for group in type(resolved.cfgs).model_fields for key in _keys(resolved, group)]
    return {path: _value(resolved, path) for path in paths if resolved.given(path)}


def given_yaml(asked: Asked, resolved: Resolved) -> str:
    """Returns what was given as a file for `--config`; without secrets, which have to be given again."""
    groups: dict[str, dict[str, object]] = {}
    for path, value in given(resolved).items():
        group, key = path.split('.')
        groups.setdefault(group, {})[key] = value
    first = f'# align-anything train {asked.pair} {asked.algorithm} --config FILE\n'
    return first + dump_yaml(without_secrets(groups))


def shell(words: Sequence[str]) -> str:
    """Returns words as a person would type them: what starts the run, then a setting a line."""
    if '--module' not in words:
        return shlex.join(words)
    start = words.index('--module') + 2
    lines: list[list[str]] = [list(words[:start])]
    for word in words[start:]:
        if word.startswith('--'):
            lines.append([word])
        else:
            lines[-1].append(word)
    return BREAK.join(shlex.join(line) for line in lines)


def _keys(resolved: Resolved, group: str) -> Sequence[str]:
    return list(type(getattr(resolved.cfgs, group)).model_fields)


def _value(resolved: Resolved, path: str) -> object:
    group, key = path.split('.')
    return getattr(resolved.cfgs, group).model_dump(mode='json')[key]
