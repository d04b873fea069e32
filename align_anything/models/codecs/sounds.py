"""What codecs of sounds share that are networks of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Audio
from align_anything.models.checkpoint import stored_module
from align_anything.models.codecs.base import CONFIG, Codec, CodecRules, codec_fingerprint, samples_of
from align_anything.models.codecs.networks import copy_module, load_codec, weights_fingerprint

BOOKS = 'code_books'
"""In a codec's config.json: how many of its code books are used, the first ones."""


@dataclass(frozen=True)
class SoundRules(CodecRules):
    """Rules of a network that makes codes of sounds.

    Attributes:
        codec: what it is when it is open.
        hop: samples that a frame of codes stands for.
        module: what it is called in a whole model's checkpoint, '' for a folder of its own.
        settings: the configuration of the network.
    """

    codec: type[SoundCodec] | None = None
    hop: int = 1
    module: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def grid(self, medium: Audio) -> tuple[int, ...]:
        """Returns `(frames,)`."""
        frames = self.codec.frames(len(samples_of(medium, self)), self.hop)
        if not frames:
            raise SampleError(f'a sound of {len(medium.samples)} samples is too short for {self.folder}')
        return (frames,)

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Loads the network. Raises ModelError where it does not load."""
        return self.codec(self, load_codec(self.codec.NETWORK, self.folder, self.module, self.settings).to(device))

    def copy_to(self, out: Path) -> None:
        """As every codec; of a whole model's checkpoint the network alone."""
        if not self.module:
            return super().copy_to(out)
        copy_module(self.folder, self.module, out, (CONFIG,))


class SoundCodec:
    """The codec: a network that takes a waveform. Others say how they differ.

    Attributes:
        NETWORK: the class in transformers.
        WHOLE_FRAMES: whether it takes nothing but whole frames, so that the last one is filled with silence.
    """

    NETWORK = ''
    WHOLE_FRAMES = True

    def __init__(self, rules: SoundRules, network: nn.Module) -> None:
        self.rules, self.network = rules, network
        self.device = next(network.parameters()).device
        self.rate = rules.rate

    @classmethod
    def frames(cls, samples: int, hop: int) -> int:
        """Returns how many frames of codes a sound gets."""
        return -(-samples // hop)

    def codes_of(self, samples: Tensor) -> Tensor:
        """Returns the codes of a waveform `(samples,)`; the last two dimensions are `(books, frames)`."""
        return self.network.encode(samples[None, None]).audio_codes

    def samples_of(self, codes: Tensor) -> Tensor:
        """Returns the waveform, in any shape, of codes `(books, frames)`."""
        return self.network.decode(audio_codes=codes[None]).audio_values

    @torch.no_grad()
    def encode(self, media: Sequence[Audio]) -> list[Tensor]:
        """Returns the codes of sounds, each `(books, frames)` int64. Each is encoded by itself."""
        found, rules = [], self.rules
        for sound in media:
            (frames,) = rules.grid(sound)
            samples = torch.from_numpy(samples_of(sound, rules)).to(self.device, torch.float32)
            if self.WHOLE_FRAMES:
                samples = nn.functional.pad(samples, (0, -len(samples) % rules.hop))
            codes = self.codes_of(samples)
            if codes.shape[-1] != frames:
                raise ModelError(
                    f'the codec in {rules.folder} makes {codes.shape[-1]} frames of {len(samples)} samples, not '
                    f'{frames}: {CONFIG} describes a network that is not known here.'
                )
            # Each book encodes what the ones before it left over, so that the first ones are codes by themselves.
            found.append(codes.reshape(-1, frames)[: len(rules.books)].long().cpu())
        return found

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Audio:
        """Returns the sound of codes `(books, frames)`."""
        samples = self.samples_of(codes.to(self.device)).flatten().float()
        return Audio(samples.clamp(-1, 1).cpu().numpy(), self.rate)


def sound_rules(
    folder: Path,
    config: Mapping[str, Any],
    codec: type[SoundCodec],
    *,
    entries: int,
    most: int,
    rate: int,
    hop: int,
    books: int | None = None,
    module: str = '',
) -> SoundRules:
    """Returns the rules of a network of sounds.

    Args:
        folder: where it lies.
        config: the configuration of the network, whose `code_books` says how many books are used.
        codec: what it is when it is open.
        entries: entries of each code book.
        most: how many code books it has.
        rate: samples per second that it takes.
        hop: samples that a frame stands for.
        books: how many books are used where the configuration does not say; all of them by default.
        module: what it is called in a whole model's checkpoint, '' for a folder of its own.

    Raises:
        ModelError: it has no such number of books.
    """
    used = config.get(BOOKS, books or most)
    if type(used) is not int or not 0 < used <= most:
        raise ModelError(f'{folder / CONFIG}: {BOOKS} {used} is not a number of code books from 1 to {most}.')
    fingerprint = weights_fingerprint(stored_module(folder, module), used) if module else codec_fingerprint(folder)
    known = {'codec': codec, 'hop': hop, 'module': module, 'settings': config}
    return SoundRules(folder, 'audio', (entries,) * used, fingerprint, rate, **known)
