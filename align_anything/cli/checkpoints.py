"""The table of families as it is written: what is known of them without asking their code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TABLE_FILE = Path(__file__).with_name('families.yaml')


def listed_families() -> dict[str, dict[str, Any]]:
    """Returns the entries of the table, by `model_type`."""
    return yaml.safe_load(TABLE_FILE.read_text(encoding='utf-8'))


def known_checkpoints() -> list[str]:
    """Returns the checkpoints of the hub in the table that can be trained."""
    entries = [entry for entry in listed_families().values() if 'not_served' not in entry]
    names = [name for entry in entries for name in (*entry.get('ids', {}).values(), *entry.get('checkpoints', ()))]
    return sorted({*names}, key=str.lower)
