"""Qwen-Image-Edit (Wu et al., 2025): Qwen-Image that sees a picture beside its own, as Qwen2.5-VL does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from align_anything.models.diffusion.families.qwen_image import QwenImageSpec
from align_anything.models.diffusion.fitting import covering
from align_anything.models.diffusion.pictures import SOURCE
from align_anything.models.diffusion.prepared import Prompt


class QwenImageEditSpec(QwenImageSpec):
    """Predicts the velocity at σ. The picture to edit is brought to the size of the answer, its tokens come last."""

    pipelines = ('QwenImageEditPipeline',)
    reads = frozenset({'image'})
    shown = ('the image to edit',)
    # No text is cut.
    default_text_length = None

    def read(self, prompt: Prompt) -> Prompt:
        """Returns the prompt: the text encoder sees its picture too."""
        return prompt

    def embedded(self, pipeline: Any, prompt: Prompt) -> Tensor:
        """Returns what Qwen2.5-VL makes of a prompt and the picture in it, `(1, length, size)`."""
        (picture,) = prompt.pictures
        seen = self.seen(pipeline, covering(picture, *prompt.size))
        return pipeline.encode_prompt([prompt.text], seen, pipeline.device)[0]

    def seen(self, pipeline: Any, picture: Any) -> Any:
        """Returns what Qwen2.5-VL sees of a picture of the answer's size: that picture."""
        return picture

    def beside(self, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns the latents of the pictures to edit."""
        return [conditions[SOURCE]]


SPEC = QwenImageEditSpec
