"""What a denoiser predicts, guided or not: one formula for rollouts and for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.process import wide
from align_anything.models.diffusion.spec import DiffusionSpec, Given
from align_anything.policies.guidance import guided


@dataclass(frozen=True)
class Guidance:
    """How predictions are led to the prompt.

    Attributes:
        scale: of classifier-free guidance; 1 is none.
        rescale: whether what it gives has the norm of the prediction with the prompt in each patch (Qwen-Image).
        embedded: what guidance-distilled denoisers are told; others leave it.
    """

    scale: float = 1.0
    rescale: bool = False
    embedded: float = 1.0

    @property
    def is_on(self) -> bool:
        """Whether there is a second prediction, without the prompt."""
        return self.scale != 1


def predict(
    spec: DiffusionSpec,
    denoiser: nn.Module,
    sample: Tensor,
    level: Tensor,
    conditions: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor] | None,
    guidance: Guidance,
    dtype: torch.dtype,
) -> Tensor:
    """Returns what the denoiser predicts of samples `(batch, …)` at levels `(batch,)`, float32 of their shape.

    With the `unconditional` conditions it is guided away from what it predicts by those; no gradient flows through
    that.

    Args:
        conditions: of each sample, `(batch, …)` by name; what are no integers is brought to `dtype`, as samples are.
    """

    given = Given(sample, level, conditions)
    without = None if unconditional is None else [Given(sample, level, unconditional)]
    return predict_several(spec, denoiser, [given], without, guidance, dtype)[0]


def predict_several(
    spec: DiffusionSpec,
    denoiser: nn.Module,
    given: Sequence[Given],
    unconditional: Sequence[Given] | None,
    guidance: Guidance,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Returns what `predict` does of samples of several sizes, a batch each; the denoiser is called as often."""

    def predicted(given: Sequence[Given]) -> list[Tensor]:
        typed = [Given(own.sample.to(dtype), own.level, _typed(own.conditions, dtype)) for own in given]
        if len(typed) == 1:
            return [wide(spec.predict(denoiser, *typed[0], guidance.embedded))]
        return [wide(own) for own in spec.predict_several(denoiser, typed, guidance.embedded)]

    if unconditional is None:
        return predicted(given)
    with torch.no_grad():
        weak = predicted(unconditional)
    found = []
    for own, without in zip(predicted(given), weak, strict=True):
        led = guided(own, without, guidance.scale)
        found.append(rescaled(led, own, spec.side_multiple) if guidance.rescale else led)
    return found


def _typed(conditions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in conditions.items()}


def rescaled(led: Tensor, conditional: Tensor, patch: int) -> Tensor:
    """Returns `led` `(batch, channels, …)` with the norm of `conditional` in each patch, over all channels.

    Patches have `patch` rows and columns, or one position where that is 1.
    """
    return led * (_norm(conditional, patch) / _norm(led, patch).clamp(min=torch.finfo(led.dtype).tiny))


def _norm(values: Tensor, patch: int) -> Tensor:
    squares = values.square().sum(1, keepdim=True)
    for axis in (-1, -2) if patch > 1 else ():
        folded = squares.unflatten(axis, (-1, patch))
        squares = folded.sum(axis, keepdim=True).expand_as(folded).flatten(axis - 1, axis)
    return squares.sqrt()
