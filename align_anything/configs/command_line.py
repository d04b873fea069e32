"""The command line, as deepspeed, torchrun and plain python hand it over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from align_anything.configs.keys import KeyIndex
from align_anything.configs.layers import Layer

_TRUTH = {'true': True, 'false': False}
_GIB = re.compile(r'(\d+(?:\.\d+)?)gib')


def parse_command_line(argv: Sequence[str], index: KeyIndex) -> CommandLine:
    """Returns what `argv`, without the program's name, asks for. Problems are collected, never raised.

    Keys are written `--key value`, `--group.key value`, `--group:key value` or `--key=value`, with `-` or `_`.
    The `--local_rank` that launchers add is swallowed: the rank comes from the environment.
    """
    result = CommandLine()
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if not _is_option(token):
            result.layer.problems.append(f"command line: stray value '{token}'. Keys start with --, as in --epochs 3.")
            continue
        name, has_value, inline = token.lstrip('-').partition('=')
        texts = [inline] if has_value else []
        while not has_value and position < len(argv) and not _is_option(argv[position]):
            texts.append(argv[position])
            position += 1
        _take(name, texts, index, result)
    return result


def _is_option(token: str) -> bool:
    return token.startswith('--') or token == '-h'


def _take(name: str, texts: list[str], index: KeyIndex, result: CommandLine) -> None:
    match name.replace('-', '_'):
        case 'local_rank':
            _refuse_surplus(name, texts[1:], result)
        case 'help' | 'h':
            result.help, texts = ('all', texts[1:]) if texts[:1] == ['all'] else ('common', texts)
            _refuse_surplus(name, texts, result)
        case 'dry_run':
            said = texts[0].lower() if texts else 'true'
            result.dry_run, size = _TRUTH.get(said, True), _GIB.fullmatch(said)
            if size is not None:
                result.device_gib = float(size[1])
            known = said in _TRUTH or size is not None
            if not known:
                result.layer.problems.append(
                    f"command line --dry_run: '{texts[0]}' is no size of a device; give one such as 80GiB, or none."
                )
            _refuse_surplus(name, texts[1:], result)
        case 'config':
            if not texts or not texts[0].strip():
                result.layer.problems.append(
                    'command line --config: names no file. Give a YAML file, or remove --config.'
                )
            else:
                result.config_files.append(texts[0])
            _refuse_surplus(name, texts[1:], result)
        case _:
            _refuse_surplus(name, result.layer.take(name, texts, f'command line --{name}', index), result)


def _refuse_surplus(name: str, texts: list[str], result: CommandLine) -> None:
    result.layer.problems.extend(
        f"command line: stray value '{text}' after --{name}. Put quotes around a value that has blanks."
        for text in texts
    )


@dataclass
class CommandLine:
    """What a command line asks for, and what is wrong with it."""

    layer: Layer = field(default_factory=Layer)
    config_files: list[str] = field(default_factory=list)
    help: Literal['', 'common', 'all'] = ''
    dry_run: bool = False
    device_gib: float | None = None
