"""A step on sampled responses is the same for every split into micro-batches and layout, and against plain code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.algorithms.critic import Critic
from align_anything.core.types import Batch, Example, Piece, Scored
from align_anything.engines.step import StepResult
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.rollouts.experience import record
from align_anything.trainers.loops.splitting import filled, split
from tests.harness.local_engine import LocalEngine
from tests.invariants.test_preferences import policy, sgd
from tests.policies.stub import TextFamily

KNOWN = known_algorithms()
ALGORITHMS: dict[str, Algorithm] = {
    'ppo': KNOWN['ppo'](entropy_coeff=0.1, clip_range_dual=3.0, kl_loss_coeff=0.2, kl_loss_estimator='k2'),
    'saferlhf': KNOWN['saferlhf'](),
    'rloo': KNOWN['rloo'](rollout_correction_level='sequence'),
    'reinforce_plus_plus': KNOWN['reinforce_plus_plus'](rollout_correction_cap=None),
    'grpo': KNOWN['grpo'](beta=0.3, clip_range_high=0.3),
    'dr grpo': KNOWN['grpo'](
        beta=0.0, scale_rewards='none', loss_aggregation='sequence-mean-token-sum-norm', constant_length=16
    ),
    'dapo': KNOWN['grpo'](beta=0.0, loss_aggregation='token-mean', clip_range_high=0.28),
    'gspo': KNOWN['grpo'](importance_level='sequence', beta=0.1),
    'cispo': KNOWN['grpo'](loss_type='cispo', beta=0.0, loss_aggregation='token-mean'),
    'critic': Critic(clip_range_value=0.1),
}
# The length of each prompt, and of the responses to it.
LENGTHS = ((3, (12, 2, 4)), (1, (2, 9, 1)), (8, (1, 1, 6)), (2, (5, 3, 11)))
CUTS = {size: -(-12 // size) for size in (12, 5, 3, 1)}
BUDGETS = (1, 21)


def test_every_online_algorithm_is_here() -> None:
    online = {name for name, algorithm in KNOWN.items() if algorithm.generates and algorithm.trains}
    # The loss of online DPO is that of DPO, which test_preferences.py cuts; the others preset what those here have.
    # That of NFT is of denoisers, see tests/algorithms/test_nft.py.
    elsewhere = {'online_dpo', 'multi_ppo', 'ppo_vllm', 'ppo_remote_rm', 'nft'}
    assert {algorithm.name for algorithm in ALGORITHMS.values()} - {'critic'} == online - elsewhere


@cache
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int, weight: float) -> Piece:
        return Piece(torch.randint(1, 50, (length,), generator=generator), torch.full((length,), weight))

    def response(length: int) -> Piece:
        piece = tokens(length, 1.0)
        piece.per_unit = {
            # Near what the policy gives, so that some ratios are clipped and some are not.
            'old': torch.randn(length, generator=generator).double() - 4.5,
            'reference': torch.randn(length, generator=generator).double() - 4.5,
            **{
                name: torch.randn(length, generator=generator).double()
                for name in ('advantage', 'values/reward_critic', 'returns/reward_critic')
            },
        }
        piece.per_unit['rollout'] = piece.per_unit['old'] + 0.3 * torch.randn(length, generator=generator).double()
        return piece

    return [
        Example(tokens(prompt, 0.0), [response(length) for length in lengths], f'row {number}')
        for number, (prompt, lengths) in enumerate(LENGTHS)
    ]


def gradients(
    algorithm: Algorithm, layout: str, parts: Sequence[Sequence[Example]]
) -> tuple[StepResult, dict[str, Tensor]]:
    module = policy('tokens' if algorithm.scores == 'tokens' else 'responses', torch.float64)
    if isinstance(module, ScorePolicy):
        module.units = True
    batches = [in_float64(TokenCollator(TextFamily(), layout)(part)) for part in parts]
    result = LocalEngine(module, sgd(module, 0.0)).train_step(batches, algorithm)
    return result, {key: value.grad for key, value in module.model.named_parameters() if value.grad is not None}


def in_float64(batch: Batch) -> Batch:
    batch.weights = batch.weights.double()
    return batch


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_split_and_layout_gives_the_gradient_of_the_full_batch(name: str) -> None:
    algorithm = ALGORITHMS[name]
    result, expected = gradients(algorithm, 'padded', [examples()])
    assert expected and result.finite
    for layout in LAYOUTS:
        # One micro-batch more than there are responses for.
        ways = {f'{most} responses': split(examples(), most, number + 1) for most, number in CUTS.items()}
        size = TokenCollator(TextFamily(), layout).size
        ways |= {f'{budget} tokens': filled(examples(), budget, size) for budget in BUDGETS}
        for way, parts in ways.items():
            other, found = gradients(algorithm, layout, parts)
            assert other.terms == pytest.approx(result.terms, rel=1e-9, abs=1e-12), (layout, way)
            for key, wanted in expected.items():
                error = float((found[key] - wanted).abs().max())
                assert error <= 1e-6 * float(wanted.abs().max()) + 1e-12, f'{layout}, {way}, {key}: off by {error:.2g}'


def test_a_step_on_sampled_and_given_responses_has_the_gradients_of_both() -> None:
    """Each term is divided by its own count, whatever the number of micro-batches of the other."""
    given = [
        Example(item.prompt, [Piece(item.responses[0].ids, torch.ones(len(item.responses[0])))]) for item in examples()
    ]
    settings = {'entropy_coeff': 0.1, 'kl_loss_coeff': 0.2}
    alone = KNOWN['ppo'](**settings, ptx_coeff=0.0)
    both = KNOWN['ppo'](**settings, ptx_coeff=0.5)
    online, one = gradients(alone, 'padded', [examples()])
    supervised, other = gradients(KNOWN['sft'](), 'padded', [given])
    for layout in LAYOUTS:
        for size, more in ((12, 4), (5, 1), (3, 2)):
            parts = [*split(examples(), size, CUTS[size] + 1), *split(given, more, 5)]
            result, found = gradients(both, layout, parts)
            expected = {**online.terms, 'ptx_loss': supervised.terms['loss']}
            assert result.terms == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert result.loss == pytest.approx(online.loss + 0.5 * supervised.loss, rel=1e-9)
            for key, gradient in found.items():
                error = float((gradient - one[key] - 0.5 * other[key]).abs().max())
                assert error <= 1e-6 * float(gradient.abs().max()) + 1e-12, (
                    f'{layout}, {size}, {key}: off by {error:.2g}'
                )


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 12, 20])
def test_a_split_keeps_every_response_once_and_groups_together_where_it_can(size: int) -> None:
    parts = split(examples(), size, 13)
    assert len(parts) == 13 and all(sum(len(item.responses) for item in part) <= size for part in parts)
    found = [id(response) for part in parts for item in part for response in item.responses]
    assert found == [id(response) for item in examples() for response in item.responses]
    if size % 3 == 0:
        assert all(len(item.responses) == 3 for part in parts for item in part)


@pytest.mark.parametrize('keep_groups', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('budget', [1, 15, 21, 40, 500])
def test_micro_batches_are_filled_to_a_number_of_tokens(budget: int, layout: str, keep_groups: bool) -> None:
    collate = TokenCollator(TextFamily(), layout)
    parts = filled(examples(), budget, collate.size, keep_groups=keep_groups)
    found = [id(response) for part in parts for item in part for response in item.responses]
    assert found == [id(response) for item in examples() for response in item.responses]
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        # What is counted is what the layout computes.
        assert collate.size(part) == collate(part).stats['tokens']
        alone = len(part) == 1 and (keep_groups or len(part[0].responses) == 1)
        assert collate.size(part) <= budget or alone
        if keep_groups:
            assert all(len(item.responses) == 3 for item in part)
        elif following is not None:
            first = following[0]
            one_more = filled([*part, Example(first.prompt, first.responses[:1])], 10**6, collate.size)[0]
            assert collate.size(one_more) > budget, 'the next response would have fit'


def test_nothing_is_one_empty_micro_batch() -> None:
    size = TokenCollator(TextFamily(), 'packed').size
    assert filled([], 10, size) == [[]]
    assert filled([Example(examples()[0].prompt, [])], 10, size) == [[]]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_behind_a_response_a_critic_expects_what_it_does_before_the_token_that_follows(layout: str) -> None:
    module = policy('responses', torch.float64)
    module.units = True
    shorter = [
        Example(item.prompt, [Piece(piece.ids[:-1], piece.weights[:-1]) for piece in item.responses if len(piece) > 1])
        for item in examples()
    ]
    given = TokenCollator(TextFamily(), layout), torch.device('cpu')

    def score(batch: Batch) -> Scored:
        with torch.no_grad():
            return module(batch)

    def score_ends(batch: Batch) -> Scored:
        with torch.no_grad():
            return module(batch, bootstrap=True)

    complete = [
        Example(item.prompt, [Piece(piece.ids, piece.weights) for piece in item.responses if len(piece) > 1])
        for item in examples()
    ]
    assert record('values', score, given[0], split(complete, 5, 3), given[1]) is None
    expected = [float(piece.per_unit['values'][-1]) for item in complete for piece in item.responses]
    found = record('values', score_ends, given[0], split(shorter, 2, 6), given[1])
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
