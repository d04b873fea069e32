"""Checkpoints of models that act: a folder with config.json, action_space.json, a tokenizer and safetensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.models import architecture
from align_anything.models.acting.pi0 import load_pi0_spec
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.acting.spoc import COMPONENTS, SpocModel
from align_anything.models.action_space import FILE, read_action_space, write_action_space
from align_anything.models.adapter import find_adapter
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.checkpoint import check_checkpoint, read_config
from align_anything.models.export import export_model
from align_anything.models.score import SCORE_HEAD


def load_action_spec(
    source: str | Path, model_max_length: int | None = None, draws: int = 1, base: str | None = None
) -> ActionSpec:
    """Returns the rules of a checkpoint that acts, or of an adapter of one; reads no weights.

    `draws` are draws of noise of each chunk, of models that denoise chunks; `base` is the model under an adapter, None
    for the one that it records. Raises ModelError where it has no action space, or lacks something else.
    """
    adapter = find_adapter(source)
    base = source if adapter is None else base or adapter.require_base()
    check_checkpoint(base)
    config, space = read_config(base), read_action_space(source, base)
    if config.model_type == 'pi0':
        return load_pi0_spec(base, draws=draws, space=space)
    if space is None:
        raise ModelError(
            f'{base} has no {FILE}, so nothing says what its actions are. A published checkpoint gets one as it is '
            'converted: align-anything convert-spoc.'
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f'the tokenizer of {base}, which reads goals, does not load: {error}') from error
    return ActionSpec(config, tokenizer, space, max_length=model_max_length or sys.maxsize, components=COMPONENTS)


def load_acting(source: str | Path, dtype: torch.dtype, scores: bool = False) -> SpocModel:
    """Loads the weights of a checkpoint that acts, of an adapter the model under it; with a head, if it `scores`.

    Raises ModelError for weights that do not fit.
    """
    adapter = find_adapter(source)
    source = source if adapter is None else adapter.require_base()
    return (AnyModelForScore if scores else AnyModel).from_pretrained(source, dtype=dtype)


def skeleton(spec: ActionSpec) -> nn.Module:
    """Returns the model without storage."""
    return architecture.skeleton(spec.config)


def without_idle(model: nn.Module) -> nn.Module:
    """Freezes what says actions where a head scores instead, and what adapts it; returns the model."""
    if any(name == SCORE_HEAD or name.endswith(f'.{SCORE_HEAD}') for name, _ in model.named_modules()):
        for name, parameter in model.named_parameters():
            if '.actor.' in f'.{name}':
                parameter.requires_grad_(False)
    return model


def export_acting(
    model: nn.Module, state: Mapping[str, Tensor] | None, folder: Path, spec: ActionSpec, *, merge_adapter: bool
) -> None:
    """Writes a trained model, or its adapter, to `folder` with its action space. Call it on one rank."""
    export_model(model, state, folder, tokenizer=spec.tokenizer, merge_adapter=merge_adapter)
    write_action_space(folder, spec.space)


def make_checkpoint(folder: str | Path, model: SpocModel, tokenizer: object, space: ActionSpace) -> Path:
    """Writes a model that is not trained yet as a checkpoint, and returns its folder."""
    folder = Path(folder)
    export_model(model, None, folder, tokenizer=tokenizer)
    write_action_space(folder, space)
    return folder
