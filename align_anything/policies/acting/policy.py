"""A model that acts as a function from Batches to flat scores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.models.adapter import bare_model
from align_anything.policies.acting.collator import ActionCollator
from align_anything.policies.acting.flops import FUSION, Parts, flops_of, inner_of, kind_of, sizes_of
from align_anything.policies.acting.selfcheck import require_sound

REFERENCE, OLD = 'reference', 'old'


class ActionPolicy(nn.Module):
    """Scores actions: `forward(batch) -> Scored` with `(N,)` in float32. Pictures are looked at once in a batch."""

    def __init__(self, model: nn.Module, collate: ActionCollator, *, dtype: torch.dtype) -> None:
        """Wraps `model`, adapters applied."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._parts = Parts()
        self.temperature = 1.0

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
        """Returns the score of each unit `(N,)`, with its `entropy` on request.

        With `prediction` also what heads of numbers say of each unit; where the batch holds that of the reference, or
        of the policy that sampled, there are the exact `divergence` and `drift` from them.
        """
        if bootstrap or routing or further:
            raise ModelError('a policy that acts expects no returns, and has no experts and no codes beside tokens.')
        inputs, head = batch.inputs, self.collate.head
        with self._parts.counted(kind_of(inputs), sizes_of(inputs, padded=True), inner_of(self.model), FUSION):
            states = self.model(inputs.steps, inputs.step_of, inputs.previous, inputs.first)
        own = states[inputs.rows, inputs.columns]
        if not len(batch.weights):
            # Every rank goes through the same backward pass.
            return _of_nothing(states, bare_model(self.model).actor)
        said = bare_model(self.model).actor(own)
        scored = head.score(said, inputs.targets, self.temperature, entropy)
        predicted = head.prediction(said) if prediction else None

        def moved(role: str) -> Tensor | None:
            found = inputs.companions.get(role)
            return None if found is None else head.divergence(said, found)

        return scored._replace(prediction=predicted, divergence=moved(REFERENCE), drift=moved(OLD))

    def check(self, module: Any, device: torch.device) -> None:
        """Compares its scores of episodes beside each other with those of each alone; see `require_sound`."""
        require_sound(self.model, self.collate, self.dtype, module, device)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch, known once goals of its length were read."""
        return flops_of(batch, self.model, self._parts, acts=True)

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Makes scores those of actions that are sampled at `temperature`."""
        if of_media:
            raise ModelError('a policy that acts writes no media: set the temperature alone.')
        self.temperature = temperature or 1.0


def _of_nothing(states: Tensor, actor: nn.Module) -> Scored:
    """Scores of no units, with a gradient through the row that was computed for them."""
    nothing = states.new_zeros(0, dtype=torch.float32)
    values = nothing + 0.0 * actor(states[:1, 0]).float().sum()
    return Scored(values, nothing, divergence=nothing, drift=nothing)
