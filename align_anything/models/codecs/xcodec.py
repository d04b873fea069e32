"""X-Codec (https://arxiv.org/abs/2408.17175), and the tokenizer of Higgs Audio 2, which is built like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_config
from align_anything.models.codecs.sounds import SoundCodec, SoundRules, sound_rules


class XcodecCodec(SoundCodec):
    """A network of speech beside one of sound, quantized together."""

    NETWORK = 'XcodecModel'


class HiggsCodec(SoundCodec):
    """The same at 24 kHz and, as released, 25 frames a second."""

    NETWORK = 'HiggsAudioV2TokenizerModel'


@register_codec('xcodec', 'higgs_audio_v2_tokenizer')
def rules(folder: Path, config: dict[str, Any]) -> SoundRules:
    """Returns the rules of an X-Codec or a Higgs Audio 2 tokenizer."""
    codec = XcodecCodec if config['model_type'] == 'xcodec' else HiggsCodec
    own = network_config(folder, codec.NETWORK, config)
    return sound_rules(
        folder,
        config,
        codec,
        entries=own.codebook_size,
        most=own.num_quantizers,
        rate=own.sample_rate,
        hop=own.hop_length,
    )
