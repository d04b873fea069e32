"""What a denoiser computes of the tokens of a sample, by its configuration: what ranks even out."""

from __future__ import annotations

import torch

from align_anything.models.diffusion.opening import skeleton
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.trainable import count

PER_SAMPLE = ('norm', 'mod', 'time', 'text_embed', 'context_embed')
"""Parts of the names of matrices that tokens of samples do not go through."""


def work_of_tokens(spec: DiffusionSpec) -> tuple[float, float]:
    """Returns the operations of a forward pass for a token of a sample, and for a pair of tokens.

    Prompts are not counted, and of U-Nets, whose attention is over fewer positions, no pairs.
    """
    config = spec.configs[spec.denoiser]
    with torch.device('meta'):
        denoiser = skeleton(spec.index, spec.configs, spec.folder, spec.denoiser)
    matrices = sum(
        count(parameter)
        for name, parameter in denoiser.named_parameters()
        if parameter.ndim > 1 and not any(part in name for part in PER_SAMPLE)
    )
    if spec.denoiser != 'transformer':
        return 2.0 * matrices, 0.0
    heads, size = (config.get(name) or 0 for name in ('num_attention_heads', 'attention_head_dim'))
    layers = sum(config.get(name) or 0 for name in ('num_layers', 'num_single_layers', 'n_layers'))
    width = heads * size or config.get('dim') or 0
    return 2.0 * matrices, 4.0 * width * layers
