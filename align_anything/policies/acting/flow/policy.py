"""A model that denoises chunks as a function from Batches to flat scores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.policies.acting.flops import Parts
from align_anything.policies.acting.flow.collator import FlowCollator, FlowInputs
from align_anything.policies.acting.flow.flops import counted_denoising, counted_reading, flops_of
from align_anything.policies.acting.flow.prediction import read, spread, velocity
from align_anything.policies.acting.flow.selfcheck import require_sound
from align_anything.policies.denoising.transitions import divergence, log_probability, transition
from align_anything.policies.denoising.transitions import entropy as entropy_of

OLD, REFERENCE = 'old', 'reference'


class FlowPolicy(nn.Module):
    """Scores draws and denoising steps of chunks: `forward(batch) -> Scored` with `(N,)` in float32.

    A draw has the score `-mean((target - velocity)²)`, a step the log-density of its transition, both over the numbers
    that count. Each step of an episode is read once, whatever hangs on it.
    """

    def __init__(self, model: nn.Module, collate: FlowCollator, *, dtype: torch.dtype) -> None:
        """Wraps `model`, adapters applied; pictures, states and samples are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._parts = Parts()

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        further: bool = False,
        prediction: bool = False,
    ) -> Scored:
        """Returns the score of each unit `(N,)`; with `prediction` also the velocities, `(N, chunk, numbers)`.

        With `entropy`, steps have that of their Gaussian, which no weight changes, and draws none. Where the batch
        holds the velocities of the reference, or of the policy that sampled, there are the `divergence` and the `drift`
        from them.
        """
        if bootstrap or routing or further:
            raise ModelError('a policy that denoises actions expects no returns, and has no experts and no codes.')
        inputs: FlowInputs = batch.inputs
        with counted_reading(self._parts, inputs):
            cache = spread(read(self.model, inputs.seen, self.dtype), inputs.step_of, len(inputs.seen.ids))
        with counted_denoising(self._parts, inputs):
            predicted = velocity(
                self.model, cache, inputs.seen, inputs.step_of, inputs.sample, inputs.level, self.dtype
            )
        scored = (
            self._of_draws(inputs, predicted) if inputs.step is None else self._of_steps(inputs, predicted, entropy)
        )
        if prediction:
            scored = scored._replace(prediction=predicted)
        return scored if len(batch.weights) else _of_nothing(scored)

    def _of_draws(self, inputs: FlowInputs, predicted: Tensor) -> Scored:
        reference, old = inputs.companions.get(REFERENCE), inputs.companions.get(OLD)
        return Scored(
            -mean_over((inputs.target - predicted).square(), inputs.counted),
            divergence=None if reference is None else mean_over((reference - predicted).square(), inputs.counted),
            drift=None if old is None else mean_over((old - predicted).square(), inputs.counted),
        )

    def _of_steps(self, inputs: FlowInputs, predicted: Tensor, with_entropy: bool) -> Scored:
        process, kernel, step = self.collate.spec.process, self.collate.kernel, inputs.step
        mean, std = transition(process, kernel, inputs.sample, predicted, step)
        length = step.length(process) if kernel.divergence == 'flow_grpo' else None

        def moved(role: str, length: Tensor | None) -> Tensor | None:
            found = inputs.companions.get(role)
            if found is None:
                return None
            other = transition(process, kernel, inputs.sample, found, step)[0]
            return divergence(kept(mean, inputs.counted), kept(other, inputs.counted), std, length)

        return Scored(
            log_probability(kept(inputs.next, inputs.counted), kept(mean, inputs.counted), std),
            entropy_of(std) if with_entropy else None,
            divergence=moved(REFERENCE, length),
            drift=moved(OLD, None),
        )

    def check(self, module: Any, device: torch.device) -> None:
        """Compares its scores with the loss of the model itself, and with those of each alone; see `require_sound`."""
        require_sound(self.model, self.collate, self.dtype, module, device)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch, known once steps of its kind were read."""
        return flops_of(batch, self.model, self._parts)

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError for any but 1: transitions have the noise level of their kernel instead."""
        if temperature != 1 or of_media:
            raise ModelError('a flow is not sampled at a temperature: set the noise level of its steps.')


def mean_over(numbers: Tensor, counted: Tensor) -> Tensor:
    """Returns the mean of the numbers of each row `(rows, chunk, numbers)` that count, `(rows,)`."""
    mask = counted.to(numbers)
    return (numbers * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def kept(numbers: Tensor, counted: Tensor) -> Tensor:
    """Returns the numbers of each row `(rows, chunk, numbers)` that count, equally many of all, `(rows, kept)`."""
    return numbers[counted].view(len(numbers), -1)


def _of_nothing(scored: Scored) -> Scored:
    """Scores of no units, with a gradient through the row that was computed for them."""
    values = scored.values[:0] + 0.0 * scored.values.sum()
    nothing = values.detach()
    prediction = None if scored.prediction is None else scored.prediction[:0]
    return Scored(values, nothing, divergence=nothing, drift=nothing, prediction=prediction)
