"""A denoiser as a function from Batches to flat scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch, Example, MediaKind, Piece, Scored
from align_anything.losses.nft import contrast
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.collator import DenoisingCollator, DenoisingInputs
from align_anything.policies.denoising.noise import error
from align_anything.policies.denoising.prediction import predict
from align_anything.policies.denoising.transitions import divergence, entropy, log_probability, transition

OLD, REFERENCE = 'old', 'reference'
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""What rounding may do to the score of a sample beside others, as a share of what is of the order of one."""


class DenoisingPolicy(nn.Module):
    """Scores draws and denoising steps: `forward(batch) -> Scored` with `(N,)` in float32.

    A draw of a noise level and noise has the score `-w(level) mean((target - prediction)²)`, of which one expectation
    is a bound of a log-likelihood, or that with another `error`; a step the log-density of its transition. The
    denoiser is called once for a batch, and once more where it is guided.
    """

    def __init__(self, model: nn.Module, collate: DenoisingCollator, *, dtype: torch.dtype) -> None:
        """Wraps the denoiser `model`, adapters applied; samples and conditions are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype

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
        scored = (
            self._of_draws(inputs, predicted)
            if inputs.step is None
            else self._of_steps(inputs, predicted, with_entropy=entropy)
        )
        if prediction:
            scored = scored._replace(prediction=predicted)
        return scored if len(batch.weights) else _of_nothing(scored)

    def _predicted(self, inputs: DenoisingInputs) -> Tensor:
        collate = self.collate
        if collate.guidance.is_on and inputs.unconditional is None:
            # Other ranks may have guided steps, and under ZeRO-3 all must call the denoiser as often.
            with torch.no_grad():
                self._called(inputs, rows=1)
        return self._called(inputs, len(inputs.sample))

    def _called(self, inputs: DenoisingInputs, rows: int) -> Tensor:
        of_rows = inputs.examples[:rows]

        def spread(conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.index_select(0, of_rows) for name, value in conditions.items()}

        return predict(
            self.collate.spec,
            self.model,
            inputs.sample[:rows],
            inputs.level[:rows],
            spread(inputs.conditions),
            None if inputs.unconditional is None else spread(inputs.unconditional),
            self.collate.guidance,
            self.dtype,
        )

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
        """Compares what it says of samples beside each other with what it says of each alone, and of the same again.

        Raises ModelError where these differ by more than rounding, are not finite, or no gradient reaches the denoiser.
        """
        module.eval()
        alone = [self.collate([example]).to(device) for example in self._probes()]
        beside = self.collate(self._probes()).to(device)
        name, allowed = type(self.collate.spec).__name__, ALLOWED[self.dtype]
        with torch.no_grad():
            wanted = torch.cat([module(batch).values for batch in alone])
            found, again = module(beside).values, module(beside).values
        if not bool(found.isfinite().all()):
            raise ModelError(f'{name} fails the check before training: its scores are not finite.')
        scale = wanted.abs().clamp(min=1.0)
        for other, words in ((again, 'when they are computed again'), (wanted, 'when samples stand alone')):
            worst = float(((found - other).abs() / scale).max())
            if worst > allowed:
                raise ModelError(
                    f'{name} fails the check before training: its scores change by {worst:.2g} {words}, which rounding '
                    f'in {self.dtype} does not explain (up to {allowed:g}).'
                )
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        if trains and not module(beside).values.requires_grad:
            raise ModelError(f'{name} fails the check before training: no gradient of its scores reaches the denoiser.')

    def _probes(self) -> list[Example]:
        """Examples that differ in their latents, their noise and how many responses they have."""
        blank, generator = self.collate.spec.blank(), torch.Generator().manual_seed(0)
        shape = blank.responses[0].media[LATENTS].shape

        def response(draws: int) -> Piece:
            latents = torch.randn(shape, generator=generator)
            return Piece(torch.arange(draws), torch.full((draws,), 1 / draws), media={LATENTS: latents})

        return [
            replace(blank, source='first probe', responses=[response(1), response(2)]),
            replace(blank, source='second probe', responses=[response(1)]),
        ]

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
