"""The VQ network of Emu3, in a folder of its own (`emu3_vqgan`) or within a checkpoint of Emu3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_class, network_config
from align_anything.models.codecs.pictures import HALF, PictureCodec, PictureRules, network_rules


class Emu3Codec(PictureCodec):
    """Pictures keep their shape: they are scaled to a number of pixels, so grids differ."""

    NETWORK = 'Emu3VQVAE'

    def codes_of(self, pixels: Tensor) -> Tensor:
        """As `PictureCodec.codes_of`."""
        return self.network.encode(pixels, torch.tensor([pixels.shape[-2:]])).image_tokens[0]

    def pixels_of(self, codes: Tensor) -> Tensor:
        """As `PictureCodec.pixels_of`."""
        return self.network.decode(codes[None])


@register_codec('emu3_vqgan', 'emu3')
def rules(folder: Path, config: dict[str, Any]) -> PictureRules:
    """Returns the rules of an Emu3 VQ network."""
    vq = network_config(folder, Emu3Codec.NETWORK, config.get('vq_config', config))
    levels = len(vq.channel_multiplier)
    default = network_class('Emu3ImageProcessor')(spatial_factor=2 ** (levels - 1), **HALF)
    return network_rules(folder, config, Emu3Codec, (vq.codebook_size,), default, levels=levels)
