"""One of the named actions: its log-probability among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.core.types import Scored
from align_anything.policies.acting.heads.base import Sampled, Targets


class Categorical:
    """Says logits `(N, actions)`."""

    def score(self, said: Tensor, targets: Targets, temperature: float, entropy: bool = False) -> Scored:
        """Returns the log-probability of each action, `(N,)`."""
        logprobs = (said.float() / temperature).log_softmax(-1)
        values = logprobs.gather(1, targets.ids[:, None])[:, 0]
        return Scored(values, -(logprobs.exp() * logprobs).sum(-1) if entropy else None)

    def sample(self, said: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Sampled:
        """Returns the number of an action for each row; at temperature 0 with its log-probability at 1."""
        logprobs = (said.float() / (temperature or 1.0)).log_softmax(-1).cpu()
        if temperature:
            rows = zip(logprobs, generators, strict=True)
            ids = torch.stack([torch.multinomial(row.exp(), 1, generator=own)[0] for row, own in rows])
        else:
            ids = logprobs.argmax(-1)
        return Sampled(logprobs.gather(1, ids[:, None])[:, 0], ids=ids)

    def prediction(self, said: Tensor) -> None:
        """None: of named actions the divergence is estimated from their log-probabilities, as of tokens."""
        return

    def divergence(self, said: Tensor, other: Tensor) -> Tensor:
        """Raises ModelError: there is no prediction to compare with."""
        raise ModelError('the divergence of named actions is estimated from their log-probabilities')
