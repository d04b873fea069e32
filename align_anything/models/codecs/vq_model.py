"""The `VQModel` of diffusers, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import frozen
from align_anything.models.codecs.pictures import PictureCodec, PictureRules, fixed_size, network_rules


class VqModelCodec(PictureCodec):
    """A network of the latent diffusion models."""

    @classmethod
    def load(cls, rules: PictureRules) -> nn.Module:
        """Returns the frozen network. Raises ModelError where it does not load, or diffusers is not there."""
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ModelError(
                f"the codec in {rules.folder} is diffusers' VQModel: pip install 'align-anything[diffusion]' ({error})."
            ) from error
        try:
            network, report = VQModel.from_pretrained(rules.folder, output_loading_info=True)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ModelError(f'{rules.folder} does not load as VQModel: {error}') from error
        if report['missing_keys']:
            raise ModelError(f'{rules.folder} lacks weights of VQModel, {report["missing_keys"][0]} among them.')
        return frozen(network)

    def codes_of(self, pixels: Tensor) -> Tensor:
        """As `PictureCodec.codes_of`."""
        _, _, (_, _, codes) = self.network.quantize(self.network.encode(pixels).latents)
        return codes

    def pixels_of(self, codes: Tensor) -> Tensor:
        """As `PictureCodec.pixels_of`."""
        given, shape = codes.flatten(), (1, *codes.shape, -1)
        # Some of these networks look the entries up themselves.
        if not self.network.config.lookup_from_codebook:
            given = self.network.quantize.get_codebook_entry(given, shape)
        return self.network.decode(given, force_not_quantize=True, shape=shape).sample


@register_codec('VQModel')
def rules(folder: Path, config: dict[str, Any]) -> PictureRules:
    """Returns the rules of a VQModel; pictures get its `sample_size`, unless the folder says otherwise."""
    side = config['sample_size']
    books = (config['num_vq_embeddings'],)
    levels = len(config['block_out_channels'])
    return network_rules(folder, config, VqModelCodec, books, fixed_size(side, side), levels=levels)
