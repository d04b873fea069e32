"""Qwen-Image-Edit-2509 and later (Wu et al., 2025): Qwen2.5-VL sees pictures small, whatever is made of them."""

from __future__ import annotations

from typing import Any

from align_anything.models.diffusion.families.qwen_image_edit import QwenImageEditSpec


class QwenImageEditPlusSpec(QwenImageEditSpec):
    """Predicts the velocity at σ, as Qwen-Image-Edit does; of the several pictures that it can edit, one is trained."""

    pipelines = ('QwenImageEditPlusPipeline',)

    def seen(self, pipeline: Any, picture: Any) -> Any:
        """Returns the picture with as many pixels as the pipeline gives Qwen2.5-VL."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, picture.width / picture.height)
        return pipeline.image_processor.resize(picture, height, width)


SPEC = QwenImageEditPlusSpec
