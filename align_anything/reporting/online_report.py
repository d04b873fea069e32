"""The metrics of an online run: what was generated and what it was worth, and how the updates on it went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from align_anything.core.types import Episode, Example, Response
from align_anything.engines.step import StepResult, combined
from align_anything.environments.steps import SUCCESS
from align_anything.losses.moments import mean_and_variance, moments
from align_anything.losses.value import explained_variance
from align_anything.rollouts.experience import Rollout, responses_of

ReduceSum = Callable[[Tensor], Tensor]
RESPONSES = 'responses'
UNSAID = 'success/unsaid'
"""Share of the episodes that did not end by themselves, and of whose success nobody said anything; it is not told."""


def numbers_of(rollout: Rollout, tokens: bool = True, acts: bool = False) -> dict[str, Tensor]:
    """Numbers of each response, `(R,)`, whose means are told; NaN where there is none: a reward abstained.

    Responses that are no `tokens` have no length, no end and nothing that is repeated. Where the policy `acts` they are
    episodes.
    """
    responses, rewards = rollout.responses, rollout.rewards
    return {
        RESPONSES: torch.ones(len(responses)),
        'reward': rollout.scores.masked_fill(~rollout.judged, float('nan')),
        **{f'reward/{name}': values for name, values in rewards.items() if len(rewards) > 1},
        **{f'abstained/{name}': values.isnan().float() for name, values in rewards.items()},
        **(_of_tokens(responses) if tokens else {}),
        **(_of_episodes(responses) if acts else {}),
    }


def _of_tokens(responses: Sequence[Response]) -> dict[str, Tensor]:
    return {
        'response_length': torch.tensor([float(response.units) for response in responses]),
        'truncated': torch.tensor([float(not response.finished) for response in responses]),
        'repetition': torch.tensor([repetition(turns_of(response)) for response in responses]),
    }


EPISODE_NUMBERS: Mapping[str, Callable[[Episode], float]] = {
    'turns': lambda episode: len(episode.turns),
    'tool_calls': lambda episode: sum(turn.calls for turn in episode.turns),
    'tool_errors': lambda episode: sum(turn.info.get('tool_errors', 0) for turn in episode.turns),
    SUCCESS: lambda episode: _or_nan(episode.info.get(SUCCESS)),
}


def is_unsaid(episode: Episode) -> bool:
    """Whether an episode reached a limit, or failed, and nobody says whether its environment tells of success.

    It has none where that told of others.
    """
    return episode.ended != 'done' and SUCCESS not in episode.info


def _or_nan(value: float | None) -> float:
    return float('nan') if value is None else float(value)


def _of_episodes(responses: Sequence[Response]) -> dict[str, Tensor]:
    episodes = [response.episode for response in responses]
    return {
        **{
            name: torch.tensor([float('nan') if own is None else float(number(own)) for own in episodes])
            for name, number in EPISODE_NUMBERS.items()
        },
        UNSAID: torch.tensor([float(own is not None and is_unsaid(own)) for own in episodes]),
    }


def sums_of(numbers: Mapping[str, Tensor]) -> Tensor:
    """The sum of the numbers under each name, and how many there are, `(2, names)`; NaN is none."""
    values = torch.stack(list(numbers.values())).double()
    return torch.stack([values.nan_to_num(nan=0.0).sum(1), (~values.isnan()).double().sum(1)])


def means(names: Iterable[str], sums: Tensor) -> dict[str, float]:
    """The mean of the numbers under each name, given `sums_of` them; those without any, and abstentions of 0, left out.

    `responses` is how many there are. Where any episode told of success, those of `is_unsaid` had none.
    """
    found = {name: (total, count) for name, total, count in zip(names, *sums.tolist(), strict=True) if count}
    unsaid, _ = found.pop(UNSAID, (0.0, 0.0))
    if SUCCESS in found:
        total, count = found[SUCCESS]
        found[SUCCESS] = total, count + unsaid
    told = {name: total if name == RESPONSES else total / count for name, (total, count) in found.items()}
    return {name: value for name, value in told.items() if value or not name.startswith('abstained/')}


def names_of_numbers(rewards: Sequence[str], tokens: bool = True, acts: bool = False) -> list[str]:
    """What `numbers_of` tells of rollouts with rewards of these names."""
    several = [f'reward/{name}' for name in rewards if len(rewards) > 1]
    of_tokens = ('response_length', 'truncated', 'repetition') if tokens else ()
    return ['reward', *several, *of_tokens, *(EPISODE_NUMBERS if acts else ())]


def rollout_metrics(
    rollout: Rollout,
    trained: Sequence[Example],
    sources: Sequence[str],
    reduce_sum: ReduceSum,
    tokens: bool = True,
    acts: bool = False,
) -> dict[str, float]:
    """Means over what all ranks generated, and of several sources those of each under its name; every rank calls it.

    Args:
        rollout: the responses of this rank.
        trained: those that are learned from, with their log-probabilities by the trainer where these were scored apart.
        sources: what metrics call the datasets, in the order of `Example.source_index`.
        reduce_sum: adds a tensor up over ranks.
        tokens: whether responses are tokens.
        acts: whether they are episodes.
    """
    numbers = numbers_of(rollout, tokens, acts)
    indices = torch.tensor(
        [example.source_index for example in rollout.examples for _ in example.responses],
        dtype=torch.long,
    )
    several = sources if len(sources) > 1 else ()
    of_each = [
        sums_of({name: values[indices == number] for name, values in numbers.items()}) for number in range(len(several))
    ]
    total, *of_each = [means(numbers, sums) for sums in reduce_sum(torch.stack([sums_of(numbers), *of_each]))]
    spread = reduce_sum(moments(rollout.scores, rollout.judged.float()))
    _, variance = mean_and_variance(spread)
    drifts = [
        (response.per_unit['old'] - response.per_unit['rollout']).abs()
        for response in responses_of(trained)
        if {'old', 'rollout'} <= response.per_unit.keys()
    ]
    drift = torch.tensor([sum(float(drift.sum()) for drift in drifts), sum(map(len, drifts))], dtype=torch.float64)
    drifted, tokens = reduce_sum(drift).tolist()
    return {
        RESPONSES: 0.0,
        **total,
        **({'reward_std': float(variance.sqrt())} if spread[0] > 1 else {}),
        **({'rollout_drift': drifted / tokens} if tokens else {}),
        **{
            f'{source}/{name}': value
            for source, own in zip(several, of_each, strict=True)
            for name, value in own.items()
        },
    }


def uninformative(rollout: Rollout, reduce_sum: ReduceSum) -> dict[str, float]:
    """The share of the prompts whose responses all have the same score, over all ranks; every rank calls it."""
    differing = rollout.differing
    counts = torch.tensor([differing.count(False), len(differing)], dtype=torch.float64)
    alike, prompts = reduce_sum(counts).tolist()
    return {'uninformative': alike / prompts} if prompts else {}


def staleness(rollout: Rollout, step: int, reduce_sum: ReduceSum) -> dict[str, float]:
    """How many optimizer steps the weights at `step` are ahead of those that generated a response, in the mean.

    Over all ranks; every rank calls it.
    """
    behind = [step - response.version for response in rollout.responses]
    steps, responses = reduce_sum(torch.tensor([sum(behind), len(behind)], dtype=torch.float64)).tolist()
    return {'staleness': steps / responses} if responses else {}


def critic_metrics(role: str, results: Sequence[StepResult]) -> dict[str, float]:
    """How the optimizer steps of a critic on one rollout went."""
    terms = combined(results).terms
    if not terms:
        return {}
    explained = explained_variance(terms)
    return {
        f'{role}/value_loss': terms['value_loss'],
        f'{role}/return': terms['returns'],
        **({} if explained is None else {f'{role}/explained_variance': explained}),
    }


def turns_of(response: Response) -> list[list[int]]:
    """The tokens that the policy chose, those between two others' in one list."""
    tokens = zip(response.ids.tolist(), (response.weights > 0).tolist(), strict=True)
    return [[token for token, _ in run] for chosen, run in groupby(tokens, key=lambda pair: pair[1]) if chosen]


def repetition(turns: Sequence[Sequence[int]], size: int = 4) -> float:
    """The share of runs of `size` tokens within a turn that stood in the response before."""
    runs = [tuple(ids[start : start + size]) for ids in turns for start in range(len(ids) - size + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
