"""A model that acts with a score head: a number for each episode, or for each step of it."""

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
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.acting.collator import ActingInputs, ActionCollator
from align_anything.policies.acting.flops import FUSION, Parts, flops_of, inner_of, kind_of, sizes_of
from align_anything.policies.acting.selfcheck import require_sound


class ActionScorePolicy(nn.Module):
    """Scores whole episodes, `forward(batch) -> Scored` with `(R,)` float32, behind the last action of each.

    With `units` it scores each action, `(N,)`, by what stood before it was done: a critic.
    """

    def __init__(self, model: nn.Module, collate: ActionCollator, *, dtype: torch.dtype, units: bool = False) -> None:
        """Wraps `model`, which has a score head, adapters applied."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._parts = Parts()
        self.units = units

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        further: bool = False,
    ) -> Scored:
        """Returns the score of each episode `(R,)`, or of each unit `(N,)`.

        With `bootstrap` also what a critic expects behind the last action of each episode, `(R,)`.
        """
        if entropy or routing or further:
            raise ModelError('a score has no entropy, no experts and no codes: ask the policy that samples.')
        inputs: ActingInputs = batch.inputs
        with self._parts.counted(kind_of(inputs), sizes_of(inputs, padded=True), inner_of(self.model), FUSION):
            states = self.model(inputs.steps, inputs.step_of, inputs.previous, inputs.first)
        head = bare_model(self.model).get_submodule(SCORE_HEAD)
        ends = states[torch.arange(len(inputs.ends), device=states.device), inputs.ends][: batch.num_responses]
        own = states[inputs.rows, inputs.columns] if self.units else ends
        return Scored(_headed(head, own, states), bootstrap=_headed(head, ends, states) if bootstrap else None)

    def check(self, module: Any, device: torch.device) -> None:
        """Compares its scores of episodes beside each other with those of each alone; see `require_sound`."""
        require_sound(self.model, self.collate, self.dtype, module, device)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch, known once goals of its length were read."""
        return flops_of(batch, self.model, self._parts, acts=False)

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError: what is not sampled from has no temperature."""
        raise ModelError('a score head has no temperature.')


def _headed(head: nn.Module, own: Tensor, states: Tensor) -> Tensor:
    scores = head(own)
    # An empty selection still has to lead every rank through the same backward pass.
    return scores if len(scores) else scores + 0.0 * head(states[:1, 0]).sum()
