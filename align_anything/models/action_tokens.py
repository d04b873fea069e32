"""Gives a model reserved tokens for its actions, so that it can learn to act."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import AddedToken

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.core.files import new_folder
from align_anything.models.action_space import write_action_space
from align_anything.models.any_model import AnyModel
from align_anything.models.declared_codes import keep_codes
from align_anything.models.export import export_model
from align_anything.models.media_tokens import enlarge
from align_anything.models.pretrained_model import load_spec

TOKEN = '<|action_{}|>'


def add_action_tokens(source: str | Path, space: ActionSpace, out: str | Path) -> Path:
    """Writes a checkpoint with tokens for the actions of `space` into `out`; returns that folder.

    There is a token for each named action, or for each bin, which all dimensions share. The embedding grows to a
    multiple of 64 rows; new ones begin as the mean of the others. Statistics are added by the first training.

    Raises ModelError for a checkpoint or a folder that cannot be used, one that acts already, and a space that cannot
    be used.
    """
    problems = space.problems()
    if problems:
        raise ModelError('the action space cannot be used: ' + '\n'.join(problems))
    spec = load_spec(source, model_max_length=None)
    if spec.space is not None:
        raise ModelError(f'{source} has an action space already.')
    names = [TOKEN.format(number) for number in range(max(space.books))]
    spec.tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    ids = spec.tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ModelError(f'the tokenizer of {source} has some of the tokens {names[0]} to {names[-1]} already.')
    model = AnyModel.from_pretrained(source)
    enlarge(model, len(spec.tokenizer))
    with new_folder(out) as folder:
        export_model(model, None, folder, tokenizer=spec.tokenizer, processor=spec.processor)
        keep_codes(spec.config, spec.codes, folder)
        write_action_space(folder, replace(space, tokens='reserved', first_ids=(ids[0],) * len(space.books)))
    return Path(out)
