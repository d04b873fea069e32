"""The VQ network of Janus, which is LlamaGen's, in a folder of its own (`janus_vqgan`) or within a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_config
from align_anything.models.codecs.pictures import PictureCodec, PictureRules, fixed_size, network_rules


class JanusCodec(PictureCodec):
    """Entries are compared by their direction alone, as the network was trained."""

    NETWORK = 'JanusVQVAE'

    @classmethod
    def load(cls, rules: PictureRules) -> nn.Module:
        """As `PictureCodec.load`, with entries of length one.

        Both LlamaGen and Janus normalise entries and features before they compare them; transformers does so only
        where it decodes. With entries of length one the nearest is the same whether features are normalised or not.
        """
        network = super().load(rules)
        book = network.quantize.embedding.weight
        book.copy_(nn.functional.normalize(book, dim=-1))
        return network

    def codes_of(self, pixels: Tensor) -> Tensor:
        """As `PictureCodec.codes_of`."""
        return self.network.encode(pixels).image_tokens

    def pixels_of(self, codes: Tensor) -> Tensor:
        """As `PictureCodec.pixels_of`."""
        # The class knows one grid, that of its configuration.
        self.network.quantize.quant_state_dims = list(codes.shape)
        return self.network.decode(codes.view(1, -1))


@register_codec('janus_vqgan', 'janus')
def rules(folder: Path, config: dict[str, Any]) -> PictureRules:
    """Returns the rules of a Janus VQ network."""
    vq = network_config(folder, JanusCodec.NETWORK, config.get('vq_config', config))
    levels = len(vq.channel_multiplier)
    side = vq.num_patches * 2 ** (levels - 1)
    return network_rules(folder, config, JanusCodec, (vq.num_embeddings,), fixed_size(side, side), levels=levels)
