"""The action space of a checkpoint: `action_space.json` beside its weights, or beside those of an adapter."""

from __future__ import annotations

from pathlib import Path

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.core.types import ACTION
from align_anything.models.action_codes import action_codes
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import find
from align_anything.models.family import FamilySpec

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


def act_in(spec: FamilySpec, space: ActionSpace) -> None:
    """Lets the models of a family act in a space.

    Raises ModelError for tokens of it that the model has no embedding for, or that are something else already, and for
    a space that has none, of models that act without.
    """
    if not space.tokens:
        raise ModelError(
            "the action space does not say how actions are written: its 'tokens' should be reserved, tail or words. It "
            'is one of a model that acts without tokens.'
        )
    if space.tokens in ('reserved', 'tail'):
        stop = max(space.first_ids, default=0) + max(space.books)
        if not space.first_ids or stop > spec.embedding_rows:
            raise ModelError(
                f'the action space has tokens up to id {stop - 1}, but the model has {spec.embedding_rows} embeddings: '
                'it is that of another checkpoint.'
            )
        other = None if spec.codes is None else spec.codes.without(ACTION)
        taken = [*spec.stop_token_ids, spec.pad_token_id, *spec.media_token_ids]
        spans = [(first, first + size) for first, size in zip(space.first_ids, space.books, strict=True)]
        if other is not None:
            taken += [token for own in other.kinds.values() for span in own.spans for token in span]
        if any(first <= token < end for token in taken for first, end in spans):
            raise ModelError('the action space has tokens that end a turn, pad it, or stand for media.')
        spec.codes = action_codes(space, other)
    spec.space, spec.emits = space, spec.emits | {ACTION}
