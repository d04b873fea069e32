"""Sounds in frames, each the nearest entry of a code book of spectra: small, learned by k-means, no network.

For tests and demonstrations. What is heard of a frame are the peaks of its spectrum, each as a sinusoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Audio
from align_anything.models.codecs.base import CONFIG, Codec, CodecRules, codec_fingerprint, register_codec, samples_of

WEIGHTS = 'model.safetensors'
BOOK = 'books'


@dataclass(frozen=True)
class SpectrumRules(CodecRules):
    """Rules of a spectrum code book: sounds are cut into frames of `frame` samples, of which `bins` are looked at."""

    frame: int = 1
    bins: int = 1

    def grid(self, medium: Audio) -> tuple[int, ...]:
        """Returns `(frames,)`; the last one is filled with silence."""
        return (-(-len(samples_of(medium, self)) // self.frame),)

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Loads the code books. Raises ModelError for books of another shape."""
        books = load_file(self.folder / WEIGHTS)[BOOK]
        if books.shape != (len(self.books), self.books[0], self.bins):
            raise ModelError(f'{self.folder / WEIGHTS}: the code books are {tuple(books.shape)}, not as {CONFIG} says')
        return SpectrumCodebook(self, books.to(device))


class SpectrumCodebook:
    """The codec: nearest entry of each of `books` `(books, entries, bins)` to what the ones before it left over."""

    def __init__(self, rules: SpectrumRules, books: Tensor) -> None:
        self.rules, self.books = rules, books
        turns = torch.arange(rules.frame, dtype=torch.float64)[:, None] * torch.arange(rules.bins) / rules.frame
        # Each bin turns a whole number of times in a frame, so its sinusoid runs on from frame to frame.
        self.sinusoids = torch.sin(2 * torch.pi * turns).to(books)

    def encode(self, media: Sequence[Audio]) -> list[Tensor]:
        """Returns the codes of sounds, each `(books, frames)` int64."""
        found = []
        for sound in media:
            rest = spectra_of(samples_of(sound, self.rules), self.rules.frame, self.rules.bins).to(self.books)
            codes = []
            for book in self.books:
                codes.append(torch.cdist(rest, book).argmin(-1))
                rest = rest - book[codes[-1]]
            found.append(torch.stack(codes).cpu())
        return found

    def decode(self, codes: Tensor) -> Audio:
        """Returns the sound of codes `(books, frames)`."""
        numbers = codes.to(self.books.device)
        spectra = sum(book[row] for book, row in zip(self.books, numbers, strict=True)).clamp(min=0)
        beside = nn.functional.pad(spectra, (1, 1))
        # What stands beside a peak is the width of the window, and no sound of its own.
        peaks = torch.where((spectra >= beside[:, :-2]) & (spectra > beside[:, 2:]), spectra, 0)
        samples = (peaks @ self.sinusoids.T).flatten().clamp(-1, 1)
        return Audio(samples.cpu().numpy(), self.rules.rate)


@register_codec('spectrum_codebook')
def rules(folder: Path, config: dict[str, Any]) -> SpectrumRules:
    """Returns the rules of a spectrum code book."""
    frame, bins, rate = config['frame_size'], config['bins'], config['sampling_rate']
    if not 0 < bins <= frame // 2 + 1:
        raise ModelError(f'{folder / CONFIG}: a frame of {frame} samples has {frame // 2 + 1} bins, not {bins}')
    books = (config['codebook_size'],) * config['num_quantizers']
    return SpectrumRules(folder, 'audio', books, codec_fingerprint(folder), rate, frame=frame, bins=bins)


def spectra_of(samples: np.ndarray, frame: int, bins: int) -> Tensor:
    """Returns the amplitudes in frames of a sound, `(frames, bins)` float32; a full sinusoid on a bin has 1 there."""
    sound = torch.from_numpy(samples).double()
    frames = nn.functional.pad(sound, (0, -len(sound) % frame)).view(-1, frame)
    window = torch.hann_window(frame, dtype=torch.float64)
    return (torch.fft.rfft(frames * window).abs()[:, :bins] / (frame / 4)).float()
