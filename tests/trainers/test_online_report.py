"""The metrics of a rollout: means over all responses and by source, and how far the two log-probabilities lie apart."""

from __future__ import annotations

import pytest
import torch

from align_anything.core.errors import TrainingError
from align_anything.core.types import Example, Piece, Response
from align_anything.reporting.online_report import repetition, rollout_metrics, turns_of
from align_anything.rollouts.experience import Rollout, complete

SOURCES = ('sums.jsonl', 'words.jsonl', 'unseen.jsonl')


def response(length: int, finished: bool = True) -> Response:
    per_unit = {'rollout': torch.zeros(length)}
    return Response(torch.arange(length), torch.ones(length), per_unit=per_unit, finished=finished)


@pytest.fixture
def rollout() -> Rollout:
    """Two prompts of the first source around one of the second; one response was clipped."""
    prompts = [Example(Piece(torch.arange(3), torch.zeros(3)), [], source_index=index) for index in (0, 1, 0)]
    responses = [[response(2), response(4)], [response(6, finished=False)], [response(8)]]
    rewards = {'format': torch.tensor([0.0, 1.0, 1.0, 2.0]), 'length': torch.tensor([0.0, 0.0, -4.0, 0.0])}
    return Rollout(complete(prompts, responses), rewards, rewards['format'] + rewards['length'])


def with_logprobs(rollout: Rollout, by_trainer: float) -> list[Example]:
    for example in rollout.examples:
        for piece in example.responses:
            piece.per_unit['old'] = torch.full((len(piece),), by_trainer)
    return rollout.examples


def test_means_are_told_over_all_responses_and_by_source(rollout: Rollout) -> None:
    told = rollout_metrics(rollout, with_logprobs(rollout, 0.25), SOURCES, lambda tensor: tensor)
    assert told['responses'] == 4 and told['response_length'] == 5 and told['truncated'] == 0.25
    assert told['reward'] == 0 and told['reward/format'] == 1 and told['reward/length'] == -1
    assert told['reward_std'] == pytest.approx(torch.tensor([0.0, 1.0, -3.0, 2.0]).std().item())
    own = {name: {key: told[f'{name}/{key}'] for key in ('responses', 'reward')} for name in SOURCES[:2]}
    assert own == {'sums.jsonl': {'responses': 3, 'reward': 1}, 'words.jsonl': {'responses': 1, 'reward': -3}}
    assert told['words.jsonl/truncated'] == 1 and told['words.jsonl/reward/length'] == -4
    assert told['sums.jsonl/response_length'] == pytest.approx(14 / 3)
    assert not [name for name in told if name.startswith('unseen')], 'nothing was generated to its prompts'


def test_abstentions_are_counted_and_no_part_of_a_mean(rollout: Rollout) -> None:
    nan = float('nan')
    rollout.rewards = {'format': torch.tensor([nan, 1.0, nan, 2.0]), 'length': torch.tensor([nan, 0.0, -4.0, 0.0])}
    rollout.scores = torch.tensor([0.0, 1.0, -4.0, 2.0])
    told = rollout_metrics(rollout, with_logprobs(rollout, 0.25), SOURCES, lambda tensor: tensor)
    assert told['abstained/format'] == 0.5 and told['abstained/length'] == 0.25
    assert told['reward/format'] == 1.5 and told['reward/length'] == pytest.approx(-4 / 3)
    # Nothing judged the first response: its score of 0 is nobody's.
    assert told['reward'] == pytest.approx(-1 / 3) and told['responses'] == 4
    assert told['reward_std'] == pytest.approx(torch.tensor([1.0, -4.0, 2.0]).std().item())
    assert told['words.jsonl/abstained/format'] == 1 and 'words.jsonl/reward/format' not in told
    assert 'words.jsonl/abstained/length' not in told


def test_a_cost_judges_nothing(rollout: Rollout) -> None:
    rollout.rewards = {'format': torch.tensor([float('nan'), 1.0, 1.0, 1.0]), 'cost': torch.ones(4)}
    assert rollout.judged.tolist() == [False, True, True, True]


def test_one_source_is_not_told_twice(rollout: Rollout) -> None:
    told = rollout_metrics(rollout, with_logprobs(rollout, 0.25), SOURCES[:1], lambda tensor: tensor)
    assert not [name for name in told if name.startswith('sums')]


def test_sums_of_other_ranks_are_added(rollout: Rollout) -> None:
    """A rank whose rows all fell out tells the same as its peer."""
    sums: list[torch.Tensor] = []

    def given(tensor: torch.Tensor) -> torch.Tensor:
        sums.append(tensor.clone())
        return tensor

    told = rollout_metrics(rollout, with_logprobs(rollout, 0.5), SOURCES, given)
    nothing = Rollout([], {name: torch.zeros(0) for name in rollout.rewards}, torch.zeros(0))
    assert rollout_metrics(nothing, [], SOURCES, lambda tensor: tensor + sums.pop(0)) == told


def test_the_drift_is_that_of_the_tokens_trained_on(rollout: Rollout) -> None:
    """Of all that was generated, one response is learned from."""
    examples = with_logprobs(rollout, 0.25)
    assert rollout_metrics(rollout, examples[1:2], SOURCES, lambda tensor: tensor)['rollout_drift'] == 0.25


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition([[1, 2, 3]]) == 0
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0
    assert repetition([[7] * 8]) == pytest.approx(4 / 5)
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 1 / 2
    assert repetition([[1, 2], [3, 4], [1, 2], [3, 4]]) == 0, 'no run goes on across what somebody else said'


def test_turns_are_parted_by_what_the_policy_did_not_choose() -> None:
    response = Response(torch.tensor([5, 6, 7, 8, 9]), torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]))
    assert turns_of(response) == [[5, 6], [9]]


def test_an_engine_says_a_logprob_for_each_token_that_was_sampled() -> None:
    response = Response(torch.tensor([5, 6, 7]), torch.tensor([1.0, 0.0, 1.0]), per_unit={'rollout': torch.zeros(3)})
    example = Example(Piece(torch.tensor([1]), torch.zeros(1)), [], source='rows.jsonl:1')
    with pytest.raises(TrainingError, match='jsonl:1: the rollout engine gave 3 log-prob.* for 2 tokens'):
        complete([example], [[response]])
