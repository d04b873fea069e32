"""`align-anything chat`: from settings to a conversation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from align_anything.configs.resolve import Resolved
from align_anything.core.errors import SettingsError
from align_anything.serve.door import read_keys
from align_anything.serve.settings import ANY, Chat, name_of
from align_anything.trainers.launch import quieten_libraries, settings_of

if TYPE_CHECKING:
    from align_anything.serve.chat.loop import ReadLine
    from align_anything.serve.chat.talkers import Talker

SENT = ('temperature', 'top_p', 'max_new_tokens', 'stop', 'top_k', 'repetition_penalty')
NAMES_SENT = {'max_new_tokens': 'max_tokens'}


def chat(
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    lines: TextIO | None = None,
    out: TextIO | None = None,
) -> None:
    """Talks with what the settings name until the lines end. Raises SettingsError and ModelError before it does."""
    lines, out = lines or sys.stdin, out or sys.stdout
    resolved = settings_of(ANY, Chat, argv, os.environ if environ is None else environ)
    quieten_libraries()
    talkers = open_talkers(resolved)
    if resolved.dry_run:
        return
    from align_anything.serve.chat.loop import Chat as Conversation
    from align_anything.serve.chat.screen import Screen, terminal_graphics

    own = resolved.algorithm
    show = terminal_graphics() if lines is sys.stdin and out is sys.stdout else None
    conversation = Conversation(
        talkers, Screen(out, Path(own.media_folder), show), own.system or '', resolved.cfgs.train_cfgs.seed
    )
    if lines.isatty():
        conversation.screen.say(f'{" and ".join(talker.name for talker in talkers)}: /help tells what there is.')
    conversation.run(line_reader(lines))


def open_talkers(resolved: Resolved) -> list[Talker]:
    """Opens what the settings name. Raises SettingsError and ModelError."""
    from align_anything.serve.chat.talkers import LocalTalker, RemoteTalker
    from align_anything.trainers.runs.generator import open_generator

    own, models = resolved.algorithm, resolved.cfgs.model_cfgs
    if own.url is not None:
        keys = read_keys(own.api_key_file)
        given = [key for key in SENT if resolved.given(f'model_cfgs.{key}')]
        options = {NAMES_SENT.get(key, key): getattr(models, key) for key in given}
        return [RemoteTalker(own.url, keys[0] if keys else None, own.served_model_name, options)]
    if models.model_name_or_path is None:
        raise SettingsError(['model_cfgs.model_name_or_path is required: name a checkpoint, or a server with --url.'])
    sources = [models.model_name_or_path, *([own.compare_model_name_or_path] if own.compare_model_name_or_path else [])]
    talkers: list[Talker] = []
    for number, source in enumerate(sources):
        named = models.model_copy(update={'model_name_or_path': source})
        generator = open_generator(replace(resolved, cfgs=resolved.cfgs.model_copy(update={'model_cfgs': named})))
        name = name_of(source)
        talkers.append(LocalTalker(f'{name} ({number + 1})' if name in [t.name for t in talkers] else name, generator))
    return talkers


def line_reader(lines: TextIO) -> ReadLine:
    """Returns what reads lines: from a terminal with a prompt, and with keys that edit and find earlier ones."""
    if lines is sys.stdin and lines.isatty():
        import readline  # noqa: F401

        return input

    def read(prompt: str) -> str:
        line: Any = lines.readline()
        if not line:
            raise EOFError
        return line.rstrip('\n')

    return read
