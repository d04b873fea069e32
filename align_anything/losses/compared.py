"""What is compared with each other in a group: responses as a whole, or the turns of episodes by their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from align_anything.losses.advantages import discounted_sums, last_units
from align_anything.losses.responses import response_sums


@dataclass(frozen=True)
class Compared:
    """A things to compare, of R responses with N units: the responses, or their turns in order.

    Attributes:
        of_units: the thing that each unit belongs to, `(N,)`.
        responses: the response that each belongs to, `(A,)` and non-decreasing.
        groups: the group that each is compared in, `(A,)`.
        is_whole: whether they are the responses.
    """

    of_units: Tensor
    responses: Tensor
    groups: Tensor
    is_whole: bool

    def returns(self, scores: Tensor, rewards: Tensor | None = None, more: Tensor | None = None) -> Tensor:
        """What was still to come when each began, its own worth included, `(A,)`.

        Args:
            scores: of each response, `(R,)`.
            rewards: what of the scores was given at which unit, `(N,)`; the rest counts at the end.
            more: what is added to the scores at each unit, `(N,)`.
        """
        if self.is_whole:
            return scores if more is None else scores + response_sums(more, self.of_units, len(scores))
        given = torch.zeros_like(scores[self.responses][self.of_units]) if rewards is None else rewards
        rest = scores - response_sums(given, self.responses[self.of_units], len(scores))
        own = response_sums(given if more is None else given + more, self.of_units, len(self.responses))
        own = own + torch.where(last_units(self.responses), rest[self.responses], 0.0)
        return discounted_sums(own, self.responses, 1.0)


def whole_responses(segments: Tensor, groups: Tensor) -> Compared:
    """Returns responses, compared with the others to their prompt.

    Args:
        segments: the response of each unit, `(N,)`.
        groups: the prompt of each response, `(R,)`.
    """
    return Compared(segments, torch.arange(len(groups)), groups, is_whole=True)


def by_turn(segments: Tensor, groups: Tensor, turns: Tensor) -> Compared:
    """Returns the turns of responses, each compared with the turn of the same number in the others to its prompt.

    Those that had ended before are no part of that comparison.

    Args:
        segments: the response of each unit, `(N,)`.
        groups: the prompt of each response, `(R,)`.
        turns: the number of the turn of each unit in its response, `(N,)`.
    """
    pairs = torch.stack([segments, turns], 1)
    own, of_units = torch.unique_consecutive(pairs, dim=0, return_inverse=True)
    responses, number = own.reshape(-1, 2).unbind(1)
    _, together = torch.unique(torch.stack([groups[responses], number], 1), dim=0, return_inverse=True)
    return Compared(of_units, responses, together, is_whole=False)
