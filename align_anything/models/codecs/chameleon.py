"""The VQ network of Chameleon, in a folder of its own (`chameleon_vqgan`) or within a checkpoint of Chameleon.

Its class in transformers encodes only. The decoder is in the file `vqgan.ckpt` of the original release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.codecs.base import CONFIG, register_codec
from align_anything.models.codecs.networks import frozen, network_class, network_config, weights_fingerprint
from align_anything.models.codecs.pictures import PictureCodec, PictureRules, network_rules

DECODER = 'decoder'
"""In the network's configuration: the file of the decoder's weights. Also how their names begin in it."""
DECODER_FILE = 'media_decoder.safetensors'
"""What the file is called in checkpoints that are saved."""


class ChameleonRules(PictureRules):
    """As those of every network of pictures; a copy has the decoder with it, wherever its file lay."""

    def copy_to(self, out: Path) -> None:
        """As `PictureRules.copy_to`."""
        super().copy_to(out)
        if self.within:
            self.complete(out)

    def complete(self, checkpoint: Path) -> None:
        """Writes the decoder, where there is one, and its name into the configuration."""
        if not self.decodes:
            return
        weights = _stored(_decoder_file(self.folder, self.settings))
        own = {f'{DECODER}.{name}': weight.contiguous() for name, weight in weights.items()}
        save_file(own, checkpoint / DECODER_FILE, {'format': 'pt'})
        config = read_json(checkpoint / CONFIG)
        settings = {**config['vq_config'], DECODER: DECODER_FILE}
        atomic_write_json(checkpoint / CONFIG, {**config, 'vq_config': settings})


class ChameleonCodec(PictureCodec):
    """Decodes where the configuration names the weights of a decoder."""

    NETWORK = 'ChameleonVQVAE'

    @classmethod
    def load(cls, rules: PictureRules) -> nn.Module:
        """As `PictureCodec.load`, with the decoder where there is one. Raises ModelError where it does not fit."""
        network = super().load(rules)
        if rules.decodes:
            network.decoder = _decoder(network.config, _decoder_file(rules.folder, rules.settings))
        return network

    def codes_of(self, pixels: Tensor) -> Tensor:
        """As `PictureCodec.codes_of`."""
        return self.network.encode(pixels).image_tokens

    def pixels_of(self, codes: Tensor) -> Tensor:
        """As `PictureCodec.pixels_of`."""
        entries = self.network.quantize.embedding(codes)[None].permute(0, 3, 1, 2)
        return self.network.decoder(self.network.post_quant_conv(entries))


@register_codec('chameleon_vqgan', 'chameleon')
def rules(folder: Path, config: dict[str, Any]) -> PictureRules:
    """Returns the rules of a Chameleon VQ network."""
    settings = config.get('vq_config', config)
    vq = network_config(folder, ChameleonCodec.NETWORK, settings)
    side = {'height': vq.resolution, 'width': vq.resolution}
    default = network_class('ChameleonImageProcessor')(size={'shortest_edge': vq.resolution}, crop_size=side)
    file = _decoder_file(folder, settings)
    if file is not None and _attends(vq) - {_smallest(vq)}:
        raise ModelError(
            f'{folder / CONFIG}: a {DECODER} with attention at {sorted(_attends(vq))} pixels is not known.'
        )
    if file is not None and settings is config and settings[DECODER] != file.name:
        raise ModelError(f'{folder / CONFIG}: put the {DECODER} {file} into the folder, which is copied as it is.')
    return network_rules(
        folder,
        config,
        ChameleonCodec,
        (vq.num_embeddings,),
        default,
        levels=len(vq.channel_multiplier),
        decodes=file is not None,
        more=[] if file is None else [weights_fingerprint(_stored(file))],
        kind=ChameleonRules,
    )


def _decoder_file(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    if DECODER not in settings:
        return None
    file = folder / settings[DECODER]
    if not file.is_file():
        raise ModelError(f'{folder / CONFIG}: there is no file {file}, which it names as the {DECODER}.')
    return file


def _smallest(config: Any) -> int:
    """The side in pixels of the last level."""
    return config.resolution // 2 ** (len(config.channel_multiplier) - 1)


def _attends(config: Any) -> set[int]:
    """The sides of levels with attention."""
    sides = {config.resolution // 2**level for level in range(len(config.channel_multiplier))}
    return sides & {*(config.attn_resolutions or ())}


def _decoder(config: Any, file: Path) -> nn.Module:
    """The decoder of the original release: built as Janus', but for its attention and the order of its levels."""
    from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

    levels = len(config.channel_multiplier)
    like = network_class('JanusVQVAEConfig')(
        base_channels=config.base_channels,
        channel_multiplier=config.channel_multiplier,
        num_res_blocks=config.num_res_blocks,
        latent_channels=config.latent_channels,
        out_channels=config.in_channels,
    )
    decoder = JanusVQVAEDecoder(like)
    if not _attends(config):
        decoder.up[0].attn = nn.ModuleList()
    weights = {
        # The release counts levels from the largest, the class from the smallest.
        re.sub(r'^up\.(\d+)', lambda found: f'up.{levels - 1 - int(found[1])}', name): weight
        for name, weight in _stored(file).items()
    }
    try:
        decoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f'{file} holds no decoder of this network: {error}') from error
    return frozen(decoder)


def _stored(file: Path) -> dict[str, Tensor]:
    """The weights of a decoder, by their names in it."""
    if file.suffix == '.safetensors':
        weights = load_file(file)
    else:
        weights = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
        weights = weights.get('state_dict', weights)
    start = f'{DECODER}.'
    return {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
