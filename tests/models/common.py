"""What the tests of model loading share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_anything.configs.schema import LoraCfgs
from align_anything.models.family import FamilySpec

TEXT_FAMILIES = ('llama', 'qwen2', 'qwen3', 'qwen3_moe', 'opt', 'gemma3_text')
IMAGE_FAMILIES = ('gemma3', 'llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl')
# No file in models/families serves these.
DEFAULT_FAMILIES = ('granite', 'idefics3')


def lora_cfgs(**changes: Any) -> LoraCfgs:
    """Settings of an adapter without dropout, so that two forward passes agree."""
    return LoraCfgs(**{'use_lora': True, 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.0, **changes})


def model_inputs(spec: FamilySpec) -> dict[str, Tensor]:
    """One row for the model: an image where the family takes one, then eight text tokens."""
    text = torch.arange(20, 28)
    if 'image' not in spec.reads:
        return {'input_ids': text[None]}
    piece = spec.dummy('image')
    row = {'input_ids': torch.cat([piece.ids, text])[None], **spec.merge_media([piece.media])}
    for name, values in piece.token_tensors.items():
        row[name] = torch.cat([values, torch.zeros(len(text), dtype=values.dtype)])[None]
    return row


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits of a model in evaluation mode, `(1, length, vocabulary)`."""
    return model.eval()(**inputs, use_cache=False).logits


def stir(model: nn.Module) -> None:
    """Moves every trainable parameter away from its first value: a fresh adapter changes nothing yet."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
