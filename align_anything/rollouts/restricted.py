"""Sampling of each unit among the ids of its set, as a grammar says: the same computation in every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from align_anything.rollouts.grammar import Grammar, Spans, State

NOTHING = float('-inf')
Draw = Callable[[Tensor], Tensor]
"""Samples ids `(rows,)` by log-probabilities `(rows, ids)` that need not add up to one."""


@dataclass(frozen=True)
class SetSampling:
    """How units of one set are sampled.

    Attributes:
        temperature: divides the logits; 0 decodes greedily.
        top_k: number of most likely ids to sample from, 0 for all.
        top_p: probability mass of the ids to sample from, 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Restriction:
    """A grammar, and how units of each of its sets are sampled.

    Attributes:
        grammar: what may stand where.
        how: of each set, in the order of `grammar.sets`.
    """

    grammar: Grammar
    how: tuple[SetSampling, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            'grammar': self.grammar.to_json(),
            'how': [[own.temperature, own.top_k, own.top_p] for own in self.how],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Restriction:
        """Returns what `to_json` wrote. Raises ValueError for anything else."""
        try:
            grammar, how = Grammar.from_json(values['grammar']), tuple(SetSampling(*own) for own in values['how'])
            grammar.start()
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f'this is no grammar of a rollout: {error!r}') from error
        if len(how) != len(grammar.sets):
            raise ValueError(f'a grammar of {len(grammar.sets)} sets says of {len(how)} how they are sampled')
        return cls(grammar, how)


class Restricted:
    """Turns logits into what units are sampled by."""

    def __init__(self, restriction: Restriction) -> None:
        self.restriction = restriction
        self._masks: dict[tuple[Spans, int, torch.device], Tensor] = {}

    def __call__(self, logits: Tensor, states: Sequence[State]) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities of the ids that come next, and the same to sample from, float32 of the same shape.

        Args:
            logits: `(rows, vocabulary)`.
            states: of each row.

        Returns:
            The first are those among all ids of the set of a row, whatever the grammar, top-k or top-p leave out, at
            its temperature (1 for greedy decoding): the log-probabilities that the policy is trained with. They say
            nothing of ids outside of the set. In the second, what may not be sampled is minus infinity.
        """
        together: dict[tuple[int, Spans], list[int]] = {}
        for row, state in enumerate(states):
            together.setdefault((state.number, state.allowed), []).append(row)
        logprobs = torch.empty_like(logits, dtype=torch.float32)
        left = torch.empty_like(logprobs)
        for (number, allowed), rows in together.items():
            how = self.restriction.how[number]
            own = logits[rows].float() / (how.temperature or 1.0)
            among = self._mask(self.restriction.grammar.sets[number], logits)
            own = own - own.masked_fill(~among, NOTHING).logsumexp(-1, keepdim=True)
            logprobs[rows] = own
            left[rows] = left_of(own.masked_fill(~self._mask(allowed, logits), NOTHING), how)
        return logprobs, left

    def _mask(self, spans: Spans, like: Tensor) -> Tensor:
        key = spans, like.shape[-1], like.device
        if key not in self._masks:
            mask = torch.zeros(like.shape[-1], dtype=torch.bool)
            for start, stop in spans:
                mask[start:stop] = True
            self._masks[key] = mask.to(like.device)
        return self._masks[key]


def sampled_of(left: Tensor) -> Tensor:
    """A `Draw` by torch's own generator."""
    return _passing(left, torch.rand(len(left), dtype=torch.float64, device=left.device))


class RowDraws:
    """A `Draw` with a generator for each row, so that what is sampled of one does not hang on the others.

    Args:
        seeds: of each row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, left: Tensor) -> Tensor:
        """Returns ids sampled by log-probabilities `(rows, ids)`, `(rows,)`: where their sum passes a number."""
        drawn = [torch.rand((), generator=own, dtype=torch.float64) for own in self._generators]
        return _passing(left, torch.stack(drawn).to(left.device))


def _passing(left: Tensor, drawn: Tensor) -> Tensor:
    """The ids at which the mass of log-probabilities `(rows, ids)` passes the share `drawn` of it, `(rows,)`.

    One number a row: torch's `multinomial` draws one for each id, which on a CPU takes longer than a small model does.
    """
    mass = left.softmax(-1).double().cumsum(-1)
    total = mass[:, -1:]
    # Below the whole mass, however it is rounded: past it stand ids that may not be sampled.
    wanted = torch.minimum(drawn[:, None] * total, total * (1 - 1e-12))
    return torch.searchsorted(mass, wanted, right=True).squeeze(1)


def seed_of(seed: int, *names: object) -> int:
    """Returns the seed of something with these names, such as a row of a run: the same on any machine."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def sample(logits: Tensor, how: SetSampling, draw: Draw = sampled_of) -> Tensor:
    """Returns ids sampled by the logits of one set, `(rows, ids)`, `(rows,)`."""
    logprobs = (logits.float() / (how.temperature or 1.0)).log_softmax(-1)
    return draw(left_of(logprobs, how))


def left_of(logprobs: Tensor, how: SetSampling) -> Tensor:
    """The log-probabilities `(rows, vocabulary)` without those that are not to be sampled."""
    if not how.temperature:
        best = logprobs.argmax(-1, keepdim=True)
        return torch.full_like(logprobs, NOTHING).scatter(-1, best, logprobs.gather(-1, best))
    if how.top_k:
        logprobs = TopKLogitsWarper(how.top_k)(None, logprobs)
    return TopPLogitsWarper(how.top_p)(None, logprobs) if how.top_p < 1 else logprobs
