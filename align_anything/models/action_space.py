"""The action space of a checkpoint: `action_space.json` beside its weights, and beside those of an adapter."""

from __future__ import annotations

from pathlib import Path

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import find

FILE = 'action_space.json'


def write_action_space(folder: str | Path, space: ActionSpace) -> None:
    """Writes the space into the folder of a checkpoint or of an adapter. Raises ModelError for one that is none."""
    problems = space.problems()
    if problems:
        raise ModelError('the action space cannot be used: ' + '\n'.join(problems))
    atomic_write_json(Path(folder) / FILE, space.to_json())


def keep_action_space(space: ActionSpace | None, folder: Path) -> None:
    """Writes the space of what is saved into its folder, nothing for models that do not act."""
    if space is not None:
        write_action_space(folder, space)


def read_action_space(source: str | Path, base: str | Path | None = None) -> ActionSpace | None:
    """Returns the space in a folder, or of a checkpoint of the hub; None where there is none.

    That of an adapter is beside it, or that of the model under it, `base` or the one it records. Raises ModelError for
    a file that is no action space.
    """
    found = find(source, FILE)
    if found is not None:
        return ActionSpace.from_json(read_json(found), str(found))
    adapter = find_adapter(source)
    return None if adapter is None else read_action_space(base or adapter.require_base())
