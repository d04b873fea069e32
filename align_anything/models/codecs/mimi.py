"""Mimi, the codec of Moshi and CSM: https://arxiv.org/abs/2410.00037."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_config
from align_anything.models.codecs.sounds import SoundCodec, SoundRules, sound_rules


class MimiCodec(SoundCodec):
    """The first book is about what is said, the others about how it sounds."""

    NETWORK = 'MimiModel'
    WHOLE_FRAMES = False


@register_codec('mimi', 'csm')
def rules(folder: Path, config: dict[str, Any]) -> SoundRules:
    """Returns the rules of a Mimi codec, in a folder of its own or within the checkpoint of a CSM."""
    within = 'codec_config' in config
    settings = config['codec_config'] if within else config
    own = network_config(folder, MimiCodec.NETWORK, settings)
    return sound_rules(
        folder,
        settings,
        MimiCodec,
        entries=own.codebook_size,
        most=own.num_quantizers,
        rate=own.sampling_rate,
        hop=own.frame_size,
        books=config['num_codebooks'] if within else None,
        module='codec_model' if within else '',
    )
