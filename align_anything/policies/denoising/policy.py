"""A denoiser as a function from Batches to flat scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.losses.nft import contrast
from align_anything.models.checkpointing import share_recomputed
from align_anything.policies.denoising.collator import DenoisingCollator, DenoisingInputs
from align_anything.policies.denoising.flops import Calls
from align_anything.policies.denoising.noise import error
from align_anything.policies.denoising.prediction import predict_several
from align_anything.policies.denoising.selfcheck import require_sound
from align_anything.policies.denoising.transitions import divergence, entropy, log_probability, transition

OLD, REFERENCE = 'old', 'reference'


class DenoisingPolicy(nn.Module):
    """Scores draws and denoising steps: `forward(batch) -> Scored` with `(N,)` in float32.

    A draw of a noise level and noise has the score `-w(level) mean((target - prediction)²)`, of which one expectation
    is a bound of a log-likelihood, or that with another `error`; a step the log-density of its transition. The
    denoiser is called once for a batch, whatever sizes its samples have, and once more where it is guided.
    """

    def __init__(self, model: nn.Module, collate: DenoisingCollator, *, dtype: torch.dtype) -> None:
        """Wraps the denoiser `model`, adapters applied; samples and conditions are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._calls = Calls()

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
        """Returns the score of each unit `(N,)`; with `prediction` also what the denoiser predicts of it, `(N, …)`.

        With `entropy`, steps have that of their Gaussian, which no weight changes, and draws none. Where the batch
        holds the predictions of the reference, or of the policy that sampled, there are the `divergence` and the
        `drift` from them, and the `contrast` if the collator asks for one.
        """
        if bootstrap or routing or further:
            raise ModelError('a denoising policy expects no returns, and has no experts and no codes beside tokens.')
        inputs: DenoisingInputs = batch.inputs
        predicted = self._predicted(inputs)
        of_sizes = [
            self._of_draws(own, found) if own.step is None else self._of_steps(own, found, with_entropy=entropy)
            for own, found in zip(inputs.sizes, predicted, strict=True)
        ]
        scored = Scored(*(None if own[0] is None else inputs.in_order(own) for own in zip(*of_sizes, strict=True)))
        if prediction:
            if inputs.others:
                raise ModelError('predictions of samples of several sizes have no one shape to be kept in.')
            scored = scored._replace(prediction=predicted[0])
        return scored if len(batch.weights) else _of_nothing(scored)

    def _predicted(self, inputs: DenoisingInputs) -> list[Tensor]:
        if self.collate.guidance.is_on and inputs.unconditional is None:
            # Other ranks may have guided steps, and under ZeRO-3 all must call the denoiser as often.
            with torch.no_grad():
                self._called(inputs, [inputs], rows=1)
        return self._called(inputs, inputs.sizes)

    def _called(
        self, inputs: DenoisingInputs, sizes: Sequence[DenoisingInputs], rows: int | None = None
    ) -> list[Tensor]:
        given = [own.given(rows) for own in sizes]
        without = None if inputs.unconditional is None else [own.unguided(rows) for own in sizes]
        samples = sum(len(own.sample) for own in given)
        with self._calls.counted(sizes, samples * (1 if without is None else 2)):
            return predict_several(self.collate.spec, self.model, given, without, self.collate.guidance, self.dtype)

    def _of_draws(self, inputs: DenoisingInputs, predicted: Tensor) -> Scored:
        beta, old, reference = self.collate.contrast, inputs.companions.get(OLD), inputs.companions.get(REFERENCE)
        errors = error(self.collate.noise, inputs.target - predicted).flatten(1).mean(1)
        pair = None
        if beta is not None and old is not None:
            pair = torch.stack(contrast(predicted, old, inputs.target, inputs.level, beta), 1)
        return Scored(
            -inputs.loss_weight * errors,
            divergence=None if reference is None else _distance(predicted, reference),
            drift=None if old is None else _distance(predicted, old),
            contrast=pair,
        )

    def _of_steps(self, inputs: DenoisingInputs, predicted: Tensor, with_entropy: bool) -> Scored:
        process, kernel, step = self.collate.spec.process, self.collate.kernel, inputs.step
        mean, std = transition(process, kernel, inputs.sample, predicted, step)
        length = step.length(process) if kernel.divergence == 'flow_grpo' else None

        def other_mean(role: str) -> Tensor | None:
            found = inputs.companions.get(role)
            return None if found is None else transition(process, kernel, inputs.sample, found, step)[0]

        reference, old = other_mean(REFERENCE), other_mean(OLD)
        return Scored(
            log_probability(inputs.next, mean, std),
            entropy(std) if with_entropy else None,
            divergence=None if reference is None else divergence(mean, reference, std, length),
            drift=None if old is None else divergence(mean, old, std),
        )

    def check(self, module: Any, device: torch.device) -> None:
        """Compares its scores of samples beside each other with those of each alone; see `require_sound`."""
        require_sound(self.model, self.collate, self.dtype, module, device)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch, known once one of its shapes was scored.

        Those of responses of other rows go forward alone.
        """
        if not batch.stats.get('examples'):
            return {}
        again = share_recomputed(self.model)
        found = self._calls.flops(batch.inputs, self.model, self.collate.guidance.is_on, again)
        if batch.unmatched is None:
            return found
        others = self.flops(batch.unmatched)
        return {name: flops + others.get(name, Flops()).forward_only() for name, flops in found.items()}

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError for any but 1: transitions have the noise level of their kernel instead."""
        if temperature != 1 or of_media:
            raise ModelError('a denoiser is not sampled at a temperature: set the noise level of its steps.')


def _distance(predicted: Tensor, other: Tensor) -> Tensor:
    return (other - predicted).square().flatten(1).mean(1)


def _of_nothing(scored: Scored) -> Scored:
    """Scores of no units, with a gradient through the row that was computed for them."""
    values = scored.values[:0] + 0.0 * scored.values.sum()
    nothing = values.detach()
    prediction = None if scored.prediction is None else scored.prediction[:0]
    pair = values[:, None].expand(-1, 2)
    return Scored(values, nothing, divergence=nothing, drift=nothing, contrast=pair, prediction=prediction)
