"""What responses and episodes are worth: what turns are credited with, and what limits cost that were reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from align_anything.algorithms.online import Online
from align_anything.configs.online import COST, OnlineRunCfgs
from align_anything.core.types import Example, Response, Turn
from align_anything.losses.shaping import missing_eos_penalty, overlong_penalty
from align_anything.rollouts.experience import Rollout, responses_of

LIMITS = ('turns', 'tokens')
"""How episodes end that reached a limit."""


def credited(examples: Sequence[Example], cfgs: OnlineRunCfgs) -> dict[str, Tensor | None]:
    """What turns are credited with, by its name in `Experience`, where settings say so.

    That is what the environment gave for each, and where it says what they cost, that.
    """
    settings, judges = cfgs.environment_cfgs, cfgs.model_cfgs.judges
    if settings.credit != 'turn':
        return {}

    def reward(response: Response, turn: Turn) -> float:
        nothing = turn.reward is None or (settings.on_limit == 'zero' and response.episode.ended in LIMITS)
        return 0.0 if nothing else settings.environment_weight * turn.reward

    costs_turns = COST in judges and judges[COST].source is None
    return {
        'turns': turns_of(examples),
        'turn_rewards': at_turns(examples, reward),
        'turn_costs': at_turns(examples, lambda _, turn: sum(turn.costs.values())) if costs_turns else None,
    }


def turns_of(examples: Sequence[Example]) -> Tensor:
    """The number of the turn of each unit of all responses, which are episodes, `(N,)`."""
    numbers = [
        torch.arange(len(turns)).repeat_interleave(torch.tensor([turn.units for turn in turns]))
        for turns in (response.episode.turns for response in responses_of(examples))
    ]
    return torch.cat([torch.zeros(0, dtype=torch.long), *numbers])


def at_turns(examples: Sequence[Example], worth: Callable[[Response, Turn], float]) -> Tensor:
    """What each turn is worth at its last unit, and nothing at others, of all responses, which are episodes, `(N,)`."""
    values = []
    for response in responses_of(examples):
        own, at = torch.zeros(response.units), 0
        for turn in response.episode.turns:
            at += turn.units
            if turn.units:
                own[at - 1] = worth(response, turn)
        values.append(own)
    return torch.cat([torch.zeros(0), *values])


def usable(rollout: Rollout, cfgs: OnlineRunCfgs) -> Rollout:
    """What is trained on: where settings say so, no episode that reached a limit, nor one that is left alone then."""
    if cfgs.environment_cfgs.on_limit != 'drop':
        return rollout
    return rollout.only(~over_limit(rollout.examples), min(2, cfgs.train_cfgs.num_generations))


def at_limits(rewards: Mapping[str, Tensor], examples: Sequence[Example], cfgs: OnlineRunCfgs) -> dict[str, Tensor]:
    """The rewards of responses, `(R,)` by name: none, where settings say so, for an episode that reached a limit."""
    if cfgs.environment_cfgs.on_limit != 'zero':
        return dict(rewards)
    lost = over_limit(examples)
    return {name: own if name == COST else own.masked_fill(lost, 0.0) for name, own in rewards.items()}


def penalised(scores: Tensor, responses: Sequence[Response], algorithm: Online, max_length: int) -> Tensor:
    """The scores `(R,)` less what it costs to have no end, or to come close to `max_length` units."""
    finished = torch.tensor([response.finished for response in responses], dtype=torch.bool)
    scores = scores + missing_eos_penalty(finished, algorithm.missing_eos_penalty)
    if algorithm.overlong_buffer is None:
        return scores
    lengths = torch.tensor([float(_longest_turn(response)) for response in responses])
    return scores + overlong_penalty(lengths, max_length=max_length, buffer=algorithm.overlong_buffer)


def _longest_turn(response: Response) -> int:
    """How many units the longest turn of a response has: each may have as many as the limit says."""
    return response.units if response.episode is None else max(turn.units for turn in response.episode.turns)


def over_limit(examples: Sequence[Example]) -> Tensor:
    """Of each response, whether it is an episode that reached a limit, `(R,)` bool."""
    found = [response.episode is not None and response.episode.ended in LIMITS for response in responses_of(examples)]
    return torch.tensor(found, dtype=torch.bool)
