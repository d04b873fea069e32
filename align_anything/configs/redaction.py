"""Keeps secrets out of saved settings and out of messages."""

from __future__ import annotations

import re
from typing import Any

_SECRET_NAME = re.compile(r'token|key|secret|password', re.IGNORECASE)
_HARMLESS = frozenset({'action_tokens'})
"""Settings that are called alike and tell no secret."""
_USER_IN_URL = re.compile(r'(?<=://)[^/@\s]+@')
_SECRET_IN_QUERY = re.compile(
    r'(?<=[?&])[^=&\s]*(?:token|key|secret|password|signature)[^=&\s]*=[^&#\s]*', re.IGNORECASE
)


def names_secret(name: str) -> bool:
    """Whether the name of a setting or a variable tells of a secret."""
    return name not in _HARMLESS and _SECRET_NAME.search(name) is not None


def without_secrets(value: Any, path: str = '', removed: list[str] | None = None) -> Any:
    """Returns `value` without entries whose name tells of a secret, and without credentials inside URLs.

    Numbers and truth values stay, so that `max_new_tokens: 16` does. Dotted paths of what was left out are
    appended to `removed`.
    """
    removed = [] if removed is None else removed
    if isinstance(value, dict):
        kept = {}
        for name, item in value.items():
            inner = f'{path}.{name}' if path else str(name)
            if names_secret(str(name)) and isinstance(item, (str, list, tuple, dict)) and item:
                removed.append(inner)
            else:
                kept[name] = without_secrets(item, inner, removed)
        return kept
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, f'{path}[{number}]', removed) for number, item in enumerate(value)]
    if isinstance(value, str):
        cleaned = _SECRET_IN_QUERY.sub('', _USER_IN_URL.sub('', value))
        if cleaned != value:
            removed.append(path)
        return cleaned
    return value


def shown(value: Any) -> str:
    """Returns `value` for a message: without secrets, and not endless."""
    text = repr(without_secrets(value))
    return text if len(text) <= 120 else f'{text[:117]}...'
