"""The action space of a checkpoint: `action_space.json` beside its weights, and beside those of an adapter."""

from __future__ import annotations

from pathlib import Path

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.adapter import find_adapter

FILE = 'action_space.json'


def write_action_space(folder: str | Path, space: ActionSpace) -> None:
    """Writes the space into the folder of a checkpoint or of an adapter. Raises ModelError for one that is none."""
    problems = space.problems()
    if problems:
        raise ModelError('the action space cannot be used: ' + '\n'.join(problems))
    atomic_write_json(Path(folder) / FILE, space.to_json())


def read_action_space(folder: str | Path) -> ActionSpace | None:
    """Returns the space of a checkpoint, or of an adapter; that of the model under it where it has none of its own.

    None where there is none. Raises ModelError for a file that is no action space.
    """
    file = Path(folder) / FILE
    if file.is_file():
        return ActionSpace.from_json(read_json(file), str(file))
    adapter = find_adapter(folder)
    return None if adapter is None else read_action_space(adapter.require_base())
