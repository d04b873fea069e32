"""FLUX.1 Kontext (Black Forest Labs, 2025, arXiv:2506.15742): FLUX.1 that sees a picture beside the one it makes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from align_anything.models.diffusion.families.flux import FluxSpec, positions
from align_anything.models.diffusion.packing import pack
from align_anything.models.diffusion.pictures import SOURCE


class FluxKontextSpec(FluxSpec):
    """Predicts the velocity at σ. The picture to edit is brought to the size of the answer, its tokens come last."""

    pipelines = ('FluxKontextPipeline',)
    reads = frozenset({'image'})
    shown = ('the image to edit',)

    def placed(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of samples and those of the pictures to edit, which have the number 1."""
        source = conditions[SOURCE].to(sample.dtype)
        return torch.cat([pack(sample), pack(source)], 1), torch.cat([positions(sample), positions(source, 1)])


SPEC = FluxKontextSpec
