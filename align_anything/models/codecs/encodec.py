"""EnCodec: https://arxiv.org/abs/2210.13438."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import CONFIG, register_codec
from align_anything.models.codecs.networks import network_config
from align_anything.models.codecs.sounds import SoundCodec, SoundRules, sound_rules


class EncodecCodec(SoundCodec):
    """Its class knows bandwidths, each a number of books, and hands out its least."""

    NETWORK = 'EncodecModel'
    WHOLE_FRAMES = False

    def codes_of(self, samples: Tensor) -> Tensor:
        """As `SoundCodec.codes_of`, of all books."""
        most = self.network.config.target_bandwidths[-1]
        return self.network.encode(samples[None, None], bandwidth=most).audio_codes

    def samples_of(self, codes: Tensor) -> Tensor:
        """As `SoundCodec.samples_of`."""
        return self.network.decode(codes[None, None], [None]).audio_values


@register_codec('encodec')
def rules(folder: Path, config: dict[str, Any]) -> SoundRules:
    """Returns the rules of an EnCodec codec; two books of the 24 kHz one, as its class makes, unless it says more.

    Raises ModelError for the 48 kHz one, whose sounds cannot be made of codes alone.
    """
    own = network_config(folder, EncodecCodec.NETWORK, config)
    if own.normalize or own.chunk_length is not None or own.audio_channels != 1:
        raise ModelError(
            f'{folder / CONFIG}: an EnCodec that takes stereo, pieces, or sounds of one loudness keeps a scale beside '
            'its codes, without which they are no sound. Use the one of 24 kHz.'
        )
    books = [
        max(1, math.floor(1000 * bandwidth / (own.frame_rate * math.log2(own.codebook_size))))
        for bandwidth in own.target_bandwidths
    ]
    return sound_rules(
        folder,
        config,
        EncodecCodec,
        entries=own.codebook_size,
        most=books[-1],
        rate=own.sampling_rate,
        hop=own.hop_length,
        books=books[0],
    )
