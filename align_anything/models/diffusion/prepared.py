"""What frozen encoders made of prompts and media before training: read by data workers, by content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from align_anything.core.contents import content_of
from align_anything.core.errors import SampleError
from align_anything.core.store import TensorStore

LATENTS = 'latents'
Size = tuple[int, ...]
"""Of an image `(height, width)`, of a video `(frames, height, width)`, of audio `(samples,)`."""


@dataclass(frozen=True)
class Prompt:
    """What a pipeline is asked for.

    Attributes:
        text: in words.
        pictures: what it is shown with them, RGB PIL images, or what stands for them.
        size: what these are brought to; empty where there are none.
    """

    text: str
    pictures: tuple[Any, ...] = ()
    size: Size = ()

    @property
    def words(self) -> Prompt:
        """The prompt without its pictures."""
        return Prompt(self.text)


class Conditions(Protocol):
    """What frozen encoders make of prompts and media, whether beforehand or as they are asked."""

    def conditions(self, prompt: Prompt, read: Prompt) -> dict[str, Tensor]:
        """Returns what the denoiser is given of a prompt, by name; `read` is what the text encoders see of it."""
        ...

    def latents(self, medium: Any, size: Size) -> Tensor:
        """Returns clean latents of a decoded medium that is brought to a size."""
        ...


@dataclass(frozen=True)
class Prepared:
    """The entries of one pipeline in a store whose fingerprint is that of its frozen components.

    Attributes:
        store: where they are.
        text_length: most tokens of a prompt; None for as many as the pipeline has by itself.
    """

    store: TensorStore
    text_length: int | None = None

    def text_key(self, prompt: Prompt) -> str:
        """Returns the key of what the text encoders make of a prompt, whose pictures are those that they see."""
        length = [] if self.text_length is None else [self.text_length]
        return self.store.key('text', prompt.text, *length, *_shown(prompt))

    def pictures_key(self, prompt: Prompt) -> str:
        """Returns the key of what the autoencoder makes of the pictures of a prompt."""
        return self.store.key('pictures', *_shown(prompt))

    def latents_key(self, medium: Any, size: Size) -> str:
        """Returns the key of the latents of a medium, decoded or known, that is brought to a size."""
        return self.store.key('latents', content_of(medium), list(size))

    def conditions(self, prompt: Prompt, read: Prompt) -> dict[str, Tensor]:
        """Returns what the denoiser is given of a prompt, by name; `read` is what the text encoders see of it.

        Raises SampleError where it was not made.
        """
        found = self._found(self.text_key(read), 'its prompt')
        return found | self._found(self.pictures_key(prompt), 'a picture of its prompt') if prompt.pictures else found

    def latents(self, medium: Any, size: Size) -> Tensor:
        """Returns clean latents as the denoiser's process has them. Raises SampleError where they were not made."""
        return self._found(self.latents_key(medium, size), 'a medium of it')[LATENTS]

    def _found(self, key: str, what: str) -> dict[str, Tensor]:
        entry = self.store.get(key)
        if entry is None:
            raise SampleError(
                f'there is nothing that the encoders made of {what} in {self.store.folder}: it could not be encoded, '
                'or has changed since'
            )
        return entry.tensors


def _shown(prompt: Prompt) -> list[Any]:
    """What tells the pictures of a prompt from others; nothing of a prompt that has none."""
    return [[content_of(picture) for picture in prompt.pictures], list(prompt.size)] if prompt.pictures else []
