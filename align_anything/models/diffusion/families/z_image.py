"""Z-Image (Tongyi Lab, 2025): a flow whose denoiser counts time backwards and predicts the velocity negated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import PictureSpec
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.spec import Given


class ZImageSpec(PictureSpec):
    """Predicts `z - ε` at 1 - σ; prompts of a batch stay as long as they are."""

    pipelines = ('ZImagePipeline',)
    side_multiple = 2
    default_text_length = 512
    one_size = ''

    @property
    def most_positions(self) -> int:
        """Patches of a side in the tables of the denoiser; the first is of prompts and frames."""
        _, *sides = self.configs[self.denoiser].get('axes_lens') or (1024, 512, 512)
        return min(sides)

    def default_size(self) -> Size:
        """Returns the size of the settings, else 1024 pixels a side, `(height, width)`."""
        return self.sizing.resolution or (1024, 1024)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of each, and its `mask` of ones."""
        texts, _ = pipeline.encode_prompt(list(prompts), pipeline.device, False, max_sequence_length=self.text_length)
        return [{'text': text.cpu(), 'mask': torch.ones(len(text), dtype=torch.bool)} for text in texts]

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        return torch.stack(self._predicted(denoiser, [Given(sample, level, conditions)]))

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns `z - ε` of samples of several sizes, which the denoiser takes as they are."""
        predicted = self._predicted(denoiser, given)
        counts = [len(own.sample) for own in given]
        return [torch.stack(predicted[sum(counts[:at]) : sum(counts[: at + 1])]) for at in range(len(counts))]

    def _predicted(self, denoiser: nn.Module, given: Sequence[Given]) -> list[Tensor]:
        samples, texts = [], []
        for sample, _, conditions in given:
            samples += sample[:, :, None].unbind()
            lengths = conditions['mask'].sum(1).tolist()
            texts += [text[:length].to(sample.dtype) for text, length in zip(conditions['text'], lengths, strict=True)]
        backwards = (1000 - torch.cat([own.level for own in given]) * self.timesteps) / 1000
        negated = denoiser(samples, backwards, texts, return_dict=False)[0]
        return [-one.float()[:, 0] for one in negated]

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns noise levels evenly from 1 down to, but without, 0."""
        return numpy.linspace(1.0, 0.0, steps + 1)[:-1].tolist()


SPEC = ZImageSpec
