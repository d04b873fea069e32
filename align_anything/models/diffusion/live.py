"""What frozen encoders make of prompts as they come: for whoever generates and has no data to prepare."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.models.codes import content_of
from align_anything.models.diffusion.prepared import Prompt, Size

if TYPE_CHECKING:
    from align_anything.models.diffusion.spec import DiffusionSpec

KEPT = 64


class LiveConditions:
    """Stands for `Prepared` where prompts are encoded when they are asked for; the last ones are kept.

    Args:
        spec: the family of the pipeline.
        pipeline: what `spec.open` returned, text encoders in it.
    """

    def __init__(self, spec: DiffusionSpec, pipeline: Any) -> None:
        self._spec, self._pipeline = spec, pipeline
        self._kept: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    @torch.no_grad()
    def conditions(self, prompt: Prompt, read: Prompt) -> dict[str, Tensor]:
        """Returns what the denoiser is given of a prompt, by name; `read` is what the text encoders see of it."""
        spec, pipeline = self._spec, self._pipeline
        found = self._made(('text', *_key(read)), lambda: spec.encode_read(pipeline, [read])[0])
        if not prompt.pictures:
            return dict(found)
        return found | self._made(('pictures', *_key(prompt)), lambda: spec.encode_pictures(pipeline, prompt))

    def latents(self, medium: Any, size: Size) -> Tensor:
        """Raises SampleError: answers are generated, not read."""
        raise SampleError('this model generates the answer: leave it out of the conversation')

    def _made(self, key: Hashable, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _key(prompt: Prompt) -> tuple[Hashable, ...]:
    return prompt.text, tuple(repr(content_of(picture)) for picture in prompt.pictures), prompt.size
