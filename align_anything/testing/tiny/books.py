"""Code books of tiny models that emit pictures, spread so that pictures use many of their entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.testing.tiny.options import TinyOptions

ENTRIES = 64
FACTOR = 8
"""Pixels along a side that become one code."""
PICTURES = 12


def check_picture(options: TinyOptions) -> None:
    """Raises ModelError for pictures that are no whole number of codes wide."""
    if options.image_size % FACTOR:
        raise ModelError(
            f"image_size {options.image_size} is no multiple of {FACTOR}, the pixels of one code of '{options.family}'."
        )


def encoder_of_codes(**more: Any) -> dict[str, Any]:
    """Returns the configuration that the picture codecs of these families have in common: one eighth of the size."""
    return {'base_channels': 32, 'channel_multiplier': [1, 1, 1, 1], 'num_res_blocks': 1, **more}


def spread_book(codec: nn.Module, side: int, *, sized: bool = False, directions: bool = False) -> None:
    """Makes the entries of the code book of `codec` latents of pictures `side` pixels high.

    The random entries of a new network lie so close together that all pictures have the same few codes. `sized` codecs
    are told how large pictures are; entries of `directions` have length one.
    """
    pictures = torch.rand(PICTURES, 3, 1, 1) * 2 - 1 + 0.7 * torch.randn(PICTURES, 3, side, side)
    found: list[Tensor] = []
    hook = codec.quantize.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    with torch.no_grad():
        codec.eval().encode(pictures, *([torch.tensor([[side, side]] * PICTURES)] if sized else []))
        hook.remove()
        latents = found[0].movedim(-3, -1).flatten(0, -2)
        chosen = torch.randperm(len(latents))[: codec.quantize.embedding.num_embeddings]
        entries = nn.functional.normalize(latents[chosen], dim=-1) if directions else latents[chosen]
        codec.quantize.embedding.weight.copy_(entries)
