"""Finds what looks like a secret in files that are to be shared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_token

from align_anything.cli.sharing.files import WEIGHTS
from align_anything.configs.redaction import names_secret

SHORTEST = 12
"""Characters below which the value of a variable is a word rather than a secret."""
MAX_HEADER = 100 << 20
BEFORE_WEIGHTS = 4 << 20
"""Bytes of a GGUF file in which all stands that it tells of a model, but for a large vocabulary."""
KINDS: Mapping[str, re.Pattern[str]] = {
    kind: re.compile(pattern)
    for kind, pattern in {
        'a token of the Hugging Face hub': r'\bhf_[A-Za-z0-9]{30,}',
        'a key of an API': r'\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}',
        'a token of GitHub': r'\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})',
        'a token of GitLab': r'\bglpat-[A-Za-z0-9_-]{20,}',
        'a key of AWS': r'\b(?:AKIA|ASIA)[A-Z0-9]{16}\b',
        'a key of Google': r'\bAIza[A-Za-z0-9_-]{35}',
        'a token of Slack': r'\bxox[abprs]-[A-Za-z0-9-]{20,}',
        'a private key': r'-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----',
        'a password in an address': r'://[^/\s:@"\'<]{1,64}:[^/\s:@"\'<]{1,64}@[\w.-]',
        'a key under its name': (
            r'(?i:api|access|secret|private)[_-]?(?i:key|token)["\']?\s*[:=]\s*["\']?[A-Za-z0-9+/_-]{20,}'
        ),
    }.items()
}


class Finding(NamedTuple):
    """Where something looks like a secret, and like which. The secret itself is kept nowhere."""

    file: Path
    line: int
    kind: str

    def __str__(self) -> str:
        return f'{self.file}, line {self.line}: {self.kind}'


def find_secrets(contents: Mapping[Path, bytes | Path]) -> list[Finding]:
    """Returns what looks like a secret in files, by the names they are shared under; of weights in their headers.

    The hub's token, and values of this environment's variables that are named like secrets, are looked for too.
    """
    own = dict(_own_secrets())
    return [finding for name, content in contents.items() for finding in _search(name, _text(name, content), own)]


def _own_secrets() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= SHORTEST and not value.isdigit() and not os.path.exists(value):
            yield value, f'the value of ${name}'
    token = get_token()
    if token:
        yield token, 'the token that you are logged in with'


def _search(name: Path, text: str, own: Mapping[str, str]) -> Iterator[Finding]:
    found = [(text.find(value), told) for value, told in own.items() if value in text]
    found += [(match.start(), kind) for kind, pattern in KINDS.items() for match in pattern.finditer(text)]
    lines: dict[int, str] = {}
    for position, kind in found:
        lines.setdefault(text.count('\n', 0, position) + 1, kind)
    yield from (Finding(name, line, kind) for line, kind in sorted(lines.items()))


def _text(name: Path, content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return content.decode('utf-8', 'replace')
    if not name.name.endswith(WEIGHTS):
        return content.read_text(encoding='utf-8', errors='replace')
    with content.open('rb') as file:
        # safetensors say how long their header is.
        told = int.from_bytes(file.read(8), 'little') if name.suffix == '.safetensors' else BEFORE_WEIGHTS
        return file.read(min(told, MAX_HEADER)).decode('utf-8', 'replace')
