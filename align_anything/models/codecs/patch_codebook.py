"""Pictures in square patches, each the nearest entry of one code book: small, exact, learned by k-means.

For tests and demonstrations, where a network would have to be trained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import CONFIG, Codec, CodecRules, codec_fingerprint, register_codec

WEIGHTS = 'model.safetensors'
BOOK = 'book'


@dataclass(frozen=True)
class PatchRules(CodecRules):
    """Rules of a patch code book: pictures are scaled to `size` pixels `(height, width)` and cut into `patch`es."""

    size: tuple[int, int] = (0, 0)
    patch: int = 1

    def grid(self, medium: Image.Image) -> tuple[int, ...]:
        """Returns `(height, width)` in patches, the same for every picture."""
        return tuple(side // self.patch for side in self.size)

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Loads the code book. Raises ModelError for one of another shape."""
        book = load_file(self.folder / WEIGHTS)[BOOK]
        if book.shape != (self.books[0], 3 * self.patch**2):
            raise ModelError(f'{self.folder / WEIGHTS}: the code book is {tuple(book.shape)}, not as {CONFIG} says')
        return PatchCodebook(self, book.to(device))


class PatchCodebook:
    """The codec: nearest entry of `book` `(entries, 3 * patch * patch)` in values from 0 to 1."""

    def __init__(self, rules: PatchRules, book: Tensor) -> None:
        self.rules, self.book = rules, book

    def encode(self, media: Sequence[Image.Image]) -> list[Tensor]:
        """Returns the codes of pictures, each `(1, height, width)` int64."""
        found = []
        for image in media:
            patches = patches_of(image, self.rules.size, self.rules.patch)
            distances = torch.cdist(patches.to(self.book).flatten(0, 1), self.book)
            found.append(distances.argmin(-1).view(1, *patches.shape[:2]).cpu())
        return found

    def decode(self, codes: Tensor) -> Image.Image:
        """Returns the picture of codes `(1, height, width)`."""
        patch, (height, width) = self.rules.patch, codes.shape[1:]
        pixels = self.book[codes[0].to(self.book.device)].view(height, width, 3, patch, patch)
        array = pixels.permute(0, 3, 1, 4, 2).reshape(height * patch, width * patch, 3)
        return Image.fromarray((array * 255).round().clamp(0, 255).byte().cpu().numpy())


@register_codec('patch_codebook')
def rules(folder: Path, config: dict[str, Any]) -> PatchRules:
    """Returns the rules of a patch code book."""
    size, patch = tuple(config['size']), config['patch_size']
    if len(size) != 2 or any(side % patch for side in size):
        raise ModelError(f'{folder / CONFIG}: size {list(size)} is not a height and a width in patches of {patch}')
    return PatchRules(folder, 'image', (config['codebook_size'],), codec_fingerprint(folder), size=size, patch=patch)


def patches_of(image: Image.Image, size: tuple[int, int], patch: int) -> Tensor:
    """Returns the patches of a picture scaled to `size`, `(height, width, 3 * patch * patch)` in values from 0 to 1."""
    scaled = image.convert('RGB').resize(size[::-1], Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(scaled)).float() / 255
    cut = pixels.view(size[0] // patch, patch, size[1] // patch, patch, 3)
    return cut.permute(0, 2, 4, 1, 3).flatten(2)
