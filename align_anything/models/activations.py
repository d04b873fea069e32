"""About how much a token model keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import nn

from align_anything.models.adapter import bare_model
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.family import FamilySpec
from align_anything.models.score import SCORE_HEAD
from align_anything.models.trainable import component_of, plain_name
from align_anything.models.work import BEHIND_ATTENTION, LAYER, TOWERS, share_of_experts


def activations_of(
    model: nn.Module,
    spec: FamilySpec,
    tokens: int,
    width: int,
    recomputes: Checkpointing | None,
    tiles: int = 1,
    fused: bool = False,
    positions: Mapping[str, int] | None = None,
) -> float:
    """About how many bytes of the language model `tokens` hold until the backward pass, `width` bytes to a number.

    What goes into and out of each of its matrices is counted, of experts those that are chosen, and twice what goes
    into a norm; activation functions keep about as much as layers share of that. The head works in chunks and keeps
    nothing. Layers that are computed again keep their input, or it waits in host memory, and all of one layer at a time
    (Chen et al., 2016, arXiv:1604.06174). MLPs in `tiles` keep their input, and one tile is there at a time. Norms that
    are `fused` keep what goes into them once, and MLPs nothing of their activation function.

    Towers that train are counted alike, of as many positions as `positions` says by component.
    """
    found = _of_towers(model, spec, width, recomputes, positions or {})
    named = [(name, component_of(name, spec.components), weight) for name, weight in model.named_parameters()]
    if not any(weight.requires_grad for _, component, weight in named if component != SCORE_HEAD):
        return found
    text = spec.config.get_text_config()
    chosen = share_of_experts(text.to_dict())
    looked_up = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    unread = {id(layer.weight) for layer in (*looked_up, bare_model(model).get_output_embeddings()) if layer}
    each = in_mlps = 0.0
    for name, component, weight in named:
        if component == 'language_model' and id(weight) not in unread and not name.endswith('bias'):
            # What is not a matrix scales what a norm has made of its input.
            of_norm = (1 if fused else 2) * weight.numel()
            numbers = sum(weight.shape[-2:]) * prod(weight.shape[:-2]) if weight.ndim > 1 else of_norm
            if fused and name.endswith(('.mlp.down_proj.weight', '.mlp.down_proj.base_layer.weight')):
                numbers -= weight.shape[-1]
            each += numbers * (chosen if '.experts.' in name else 1)
            in_mlps += numbers * ('.mlp.' in name)
    layers = text.num_hidden_layers
    tile = 0.0
    if tiles > 1:
        each += layers * text.hidden_size - in_mlps
        tile = in_mlps / layers / tiles
    if recomputes is None:
        return found + tokens * width * (each + tile)
    again = recomputes.recomputed(layers)
    inputs = 0 if recomputes.offload else again
    return found + tokens * width * (inputs * text.hidden_size + (layers - again + 1) * each / layers + tile)


def _of_towers(
    model: nn.Module, spec: FamilySpec, width: int, recomputes: Checkpointing | None, positions: Mapping[str, int]
) -> float:
    """What `positions` of towers hold until the backward pass; of a frozen tower, which nothing is before, none."""
    total = 0.0
    for tower in TOWERS:
        named = [
            (plain_name(name), weight)
            for name, weight in model.named_parameters()
            if component_of(name, spec.components) == tower
        ]
        if not positions.get(tower) or not any(weight.requires_grad for _, weight in named):
            continue
        each, layers, hidden = 0.0, set(), 0
        for name, weight in named:
            layer = LAYER.search(name)
            # Tables of positions, and what patches are cut with, come before the layers and keep little.
            if layer is None or name.endswith('bias'):
                continue
            layers.add(layer[1])
            each += sum(weight.shape[-2:]) * prod(weight.shape[:-2]) if weight.ndim > 1 else 2 * weight.numel()
            if BEHIND_ATTENTION.search(name):
                hidden = max(hidden, weight.shape[0])
        if not layers:
            continue
        if recomputes is not None:
            again = recomputes.recomputed(len(layers))
            each = (0 if recomputes.offload else again) * hidden + (len(layers) - again + 1) * each / len(layers)
        total += positions[tower] * width * each
    return total
