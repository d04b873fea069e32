"""Rotary tables that transformers chooses by the longest sequence of a batch, made those of a run."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from align_anything.core.logging import get_logger

logger = get_logger(__name__)


def fix_rope_tables(model: nn.Module, max_length: int) -> None:
    """Gives the rotary embeddings of `model` one table, that of sequences of up to `max_length` tokens.

    With `longrope` and `dynamic` scaling, transformers computes the table anew for the longest sequence of each batch,
    so a long neighbour changes the scores of a short one. vLLM fixes the table of `longrope` in the same way, by its
    `max_model_len`. The configuration is left as it is.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in model.modules():
        kinds = vars(module).get('rope_type')
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer, kind in by_layer.items():
            if kind != 'longrope' and 'dynamic' not in str(kind):
                continue
            name = 'inv_freq' if layer is None else f'{layer}_inv_freq'
            settings = module.config.rope_parameters if layer is None else module.config.rope_parameters[layer]
            length: int | None = max_length
            if kind == 'longrope':
                length = _longrope_length(module, settings, max_length)
            table, _ = ROPE_INIT_FUNCTIONS[kind](
                module.config, module.get_buffer(name).device, seq_len=length, layer_type=layer
            )
            module.register_buffer(name, table, persistent=False)
            # The forward pass of any other type leaves its table alone.
            module.rope_type = 'default' if layer is None else {**module.rope_type, layer: 'default'}


def _longrope_length(module: nn.Module, settings: dict[str, Any], max_length: int) -> int | None:
    """The length whose table serves `max_length`; PhiMoE's factors beside the table become those of it too."""
    pivot = settings['original_max_position_embeddings']
    is_long = max_length > pivot
    if is_long:
        logger.warning(
            'the checkpoint has two rotary tables, for sequences of up to %d tokens and for longer ones (longrope). In '
            'this run every sequence gets that of longer ones, since model_cfgs.model_max_length is %d: no neighbour '
            'then changes a score. vLLM does the same; set model_max_length to at most %d for the other table.',
            pivot,
            max_length,
            pivot,
        )
    if 'long_mscale' in settings:
        module.config = copy.deepcopy(module.config)
        scale = settings['long_mscale' if is_long else 'short_mscale']
        module.config.rope_parameters |= {'long_mscale': scale, 'short_mscale': scale}
    return pivot + 1 if is_long else None
