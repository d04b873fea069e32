"""Codecs of tiny models that emit pictures, made so that their codes tell colours, as those of trained ones do."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.testing.tiny.options import TinyOptions

ENTRIES = 64
FACTOR = 8
"""Pixels along a side that become one code."""
PICTURES = 32
# The last layers of what is added to the way from pixels to latents.
RESIDUAL = re.compile(r'(conv2(\.conv)?|proj_out|out_proj)\.(weight|bias)$')


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
    """Makes the entries of the code book of `codec` latents of pictures `side` pixels high, of what lies at each place.

    The random entries of a new network lie so close together that all pictures have the same few codes, and its blocks
    mix places, so that codes tell nothing. `sized` codecs are told how large pictures are; entries of `directions` have
    length one.
    """
    pictures = torch.cat([_picture(side) for _ in range(PICTURES)])
    found: list[Tensor] = []
    hook = codec.quantize.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for name, weight in codec.encoder.named_parameters():
            if RESIDUAL.search(name):
                weight.zero_()
            if name.endswith('downsample.conv.weight'):
                weight.copy_(torch.eye(len(weight))[..., None, None] / weight[0, 0].numel())
        codec.eval().encode(pictures, *([torch.tensor([[side, side]] * PICTURES)] if sized else []))
        hook.remove()
        latents = found[0].movedim(-3, -1).flatten(0, -2)
        chosen = torch.randperm(len(latents))[: codec.quantize.embedding.num_embeddings]
        entries = nn.functional.normalize(latents[chosen], dim=-1) if directions else latents[chosen]
        codec.quantize.embedding.weight.copy_(entries)


def _picture(side: int) -> Tensor:
    """A patch of one colour on another, in pixels from -1 to 1, `(1, 3, side, side)`."""
    ground, patch = torch.rand(2, 1, 3, 1, 1) * 2 - 1
    picture = ground.repeat(1, 1, side, side)
    top, left = torch.randint(side // 2, (2,)).tolist()
    picture[..., top : top + side // 2, left : left + side // 2] = patch
    return picture
