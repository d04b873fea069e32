"""X-Codec 2 (https://arxiv.org/abs/2502.04128), the codec of Llasa, and NeuCodec, which is built like it.

One large book of scalar quantization, fifty frames a second. Both take the spectrum of a sound beside its waveform.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import register_codec
from align_anything.models.codecs.networks import network_class, network_config
from align_anything.models.codecs.sounds import SoundCodec, SoundRules, sound_rules


class Xcodec2Codec(SoundCodec):
    """Its feature extractor fills the last frame, after one more sample of silence."""

    NETWORK = 'Xcodec2Model'
    FEATURES = 'Xcodec2FeatureExtractor'
    WHOLE_FRAMES = False

    def __init__(self, rules: SoundRules, network: nn.Module) -> None:
        super().__init__(rules, network)
        self.extractor = network_class(self.FEATURES)(sampling_rate=rules.rate, hop_length=rules.hop)

    @classmethod
    def frames(cls, samples: int, hop: int) -> int:
        """As `SoundCodec.frames`."""
        return samples // hop + 1

    def codes_of(self, samples: Tensor) -> Tensor:
        """As `SoundCodec.codes_of`."""
        try:
            given = self.extractor(samples.cpu().numpy(), sampling_rate=self.rules.rate, return_tensors='pt')
        except ImportError as error:
            raise ModelError(f'the codec in {self.rules.folder} needs torchaudio: {error}') from error
        given = given.to(self.device)
        return self.network.encode(
            given['input_values'], given['input_features'], input_features_mask=given['input_features_mask']
        ).audio_codes


class NeuCodecCodec(Xcodec2Codec):
    """Its spectrum is a frame shorter, and so are its codes. It gives sounds at another rate than it takes."""

    NETWORK = 'NeuCodecModel'
    FEATURES = 'NeuCodecFeatureExtractor'

    def __init__(self, rules: SoundRules, network: nn.Module) -> None:
        super().__init__(rules, network)
        self.rate = network.config.output_sampling_rate

    @classmethod
    def frames(cls, samples: int, hop: int) -> int:
        """As `SoundCodec.frames`."""
        return samples // hop


@register_codec('xcodec2', 'neucodec')
def rules(folder: Path, config: dict[str, Any]) -> SoundRules:
    """Returns the rules of an X-Codec 2 or a NeuCodec."""
    codec = Xcodec2Codec if config['model_type'] == 'xcodec2' else NeuCodecCodec
    own = network_config(folder, codec.NETWORK, config)
    rate, hop = (
        (own.sampling_rate, own.hop_length)
        if codec is Xcodec2Codec
        else (own.input_sampling_rate, own.encoder_hop_length)
    )
    return sound_rules(folder, config, codec, entries=math.prod(own.quantization_levels), most=1, rate=rate, hop=hop)
