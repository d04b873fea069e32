"""The Descript audio codec: https://arxiv.org/abs/2306.06546."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_config
from align_anything.models.codecs.sounds import SoundCodec, SoundRules, sound_rules


class DacCodec(SoundCodec):
    """Residual books over a convolutional network."""

    NETWORK = 'DacModel'


@register_codec('dac')
def rules(folder: Path, config: dict[str, Any]) -> SoundRules:
    """Returns the rules of a DAC codec."""
    own = network_config(folder, DacCodec.NETWORK, config)
    return sound_rules(
        folder,
        config,
        DacCodec,
        entries=own.codebook_size,
        most=own.n_codebooks,
        rate=own.sampling_rate,
        hop=own.hop_length,
    )
