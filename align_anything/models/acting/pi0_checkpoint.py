"""Checkpoints of pi0: what of it trains at all, its score head, and what is written when it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import SampleError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.acting.pi0 import OF_ACTIONS, OF_STATES, PROCESSOR, Pi0Spec
from align_anything.models.action_space import write_action_space
from align_anything.models.any_model import AnyModel
from align_anything.models.checkpoint import stored_tensor
from align_anything.models.export import export_model
from align_anything.models.score import SCORE_HEAD, ScoreHead
from align_anything.models.trainable import Components, plain_name


def load_pi0(source: str | Path, dtype: torch.dtype, scores: bool = False) -> nn.Module:
    """Loads the weights of a checkpoint; with a score head, if it `scores`. Raises ModelError where they do not fit."""
    model = AnyModel.from_pretrained(source, dtype=dtype)
    return add_score_head(model, stored_tensor(source, f'{SCORE_HEAD}.weight')) if scores else model


def add_score_head(model: Any, weight: Tensor | None = None) -> Any:
    """Gives a model a head on the mean velocity of a chunk; returns the model.

    The last layer of the expert is linear, so this is a linear head on what that layer reads.
    """
    head = ScoreHead(model.config.max_action_dim)
    if weight is not None:
        head.load_state_dict({'weight': weight})
    model.add_module(SCORE_HEAD, head.to(device=model.device, dtype=model.dtype))
    return model


def idle(config: Any) -> tuple[str, ...]:
    """Returns prefixes of what nothing that is learned hangs on.

    Of the last layer of the language model the expert reads keys and values alone, and its own embedding of tokens
    nothing reads.
    """
    last = f'model.vlm.language_model.layers.{config.vlm_config.text_config.num_hidden_layers - 1}'
    names = ('self_attn.q_proj', 'self_attn.o_proj', 'mlp', 'post_attention_layernorm')
    return ('model.dit.embed_tokens.', 'model.vlm.language_model.norm.', *(f'{last}.{name}.' for name in names))


def without_idle(model: nn.Module, config: Any) -> nn.Module:
    """Freezes what gets no gradient, whatever is trained, and what adapts it; returns the model."""
    prefixes = idle(config)
    for name, parameter in model.named_parameters():
        if plain_name(name).startswith(prefixes):
            parameter.requires_grad_(False)
    return model


def adapted_components(components: Components) -> Components:
    """Returns components in which the expert counts as language model: adapters go on both unless they are named."""
    merged = {name: list(own) for name, own in components.items() if name != 'expert'}
    merged['language_model'] += components['expert']
    return merged


def export_pi0(
    model: nn.Module, state: Mapping[str, Tensor] | None, folder: Path, spec: Pi0Spec, *, merge_adapter: bool
) -> None:
    """Writes a trained model, or its adapter, to `folder` with its action space. Call it on one rank."""
    export_model(model, state, folder, tokenizer=spec.tokenizer, processor=spec.processor, merge_adapter=merge_adapter)
    write_action_space(folder, spec.space)
    file = folder / PROCESSOR
    # The class of the processor would write none of them.
    atomic_write_json(file, {**read_json(file), **_normalisation(spec)})


def _normalisation(spec: Pi0Spec) -> dict[str, Any]:
    """What the processor says of how numbers are normalised."""
    found: dict[str, Any] = {'max_state_dim': spec.config.max_state_dim, 'chunk_size': spec.config.chunk_size}
    if spec.state is not None:
        found |= dict(zip(OF_STATES, (own.tolist() for own in spec.state), strict=True))
    if spec.space.normalization == 'mean_std':
        own = _of(spec.space)
        found |= {} if own is None else dict(zip(OF_ACTIONS, (list(own.mean), list(own.std)), strict=True))
    return found


def _of(space: ActionSpace) -> Any:
    try:
        return space.of()
    except SampleError:
        # Of several datasets none is the one that holds.
        return None
