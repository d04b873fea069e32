"""What every policy is, whatever it writes: Examples to a Batch, and a Batch to flat scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from align_anything.core.flops import Flops
from align_anything.core.types import Batch, Cost, Example, MediaKind, Scored, Skipped
from align_anything.models.spec import Spec


class Collator(Protocol):
    """The half of a policy that runs in data workers: picklable, without weights.

    Attributes:
        spec: the rules of the family whose Examples it lays out.
        layout: what the way is called in which it lays out a batch.
        kinds: kinds of media that the Examples may hold in prompts.
    """

    spec: Spec
    layout: str
    kinds: tuple[str, ...]

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing.

        Whatever the Examples hold, a gradient of its scores reaches some weight that trains.
        """
        ...

    def cost(self, example: Example) -> Cost:
        """Returns what one Example takes; in a micro-batch, `beside` the others."""
        ...

    def size(self, examples: Sequence[Example]) -> int:
        """Returns what a micro-batch of these Examples takes of `max_length_per_batch`."""
        ...


class Policy(Protocol):
    """A model as a function from Batches to flat scores; an `nn.Module` that engines wrap.

    Attributes:
        model: what gets saved: the model itself, in its adapter wrapper under LoRA.
        collate: what makes its batches. `check` may replace it, so read it after that.
        dtype: what the model computes in.
    """

    model: nn.Module
    collate: Collator
    dtype: torch.dtype

    def __call__(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        further: bool = False,
    ) -> Scored:
        """Returns the score of each unit `(N,)`, or of each response `(R,)`; with the others what `Scored` says too.

        Raises ModelError for something that this policy has not.
        """
        ...

    def check(self, module: Any, device: torch.device) -> None:
        """Compares, before training, what it computes with what the model computes by itself. Every rank calls it.

        `module` is the policy or what an engine wrapped around it. Raises ModelError where the model cannot be
        trained rightly; where only the fast way is wrong, it takes the plain one and says so.
        """
        ...

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the floating point operations of an update on the batch, by component of the model.

        Where they are not counted, or not known yet, the mapping is empty.
        """
        ...

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Makes scores those of the distribution that samples at `temperature` from now on.

        Where it samples codes of media, those of a kind that `of_media` names have their own.
        """
        ...
