"""A step of a preference algorithm is the same for every cut into micro-batches and ranks, layout and ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.core.types import Batch, Example, Piece, Scored
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.frozen import FrozenEngine
from align_anything.engines.step import StepResult
from align_anything.models.any_model import add_score_head
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from tests.harness.local_engine import LocalEngine
from tests.invariants.runs import fork
from tests.policies.stub import TextFamily, plain_policy, tiny_llama

LEARNING_RATE = 0.1
# Of a reference from which the policy is further away than zero, by KTO's estimate.
REFERENCE_SEED = 4
KNOWN = known_algorithms()
ALGORITHMS: dict[str, Algorithm] = {
    'dpo': KNOWN['dpo'](scale_coeff=0.5, label_smoothing=0.1, sft_coeff=0.3),
    'dpo of several': KNOWN['dpo'](loss_type=['ipo', 'apo_zero', 'sigmoid_norm'], loss_weights=[0.2, 1.0, 0.5]),
    'kto': KNOWN['kto'](scale_coeff=0.5, scale_better=1.5, scale_worse=0.5),
    'orpo': KNOWN['orpo'](scale_coeff=0.5),
    'simpo': KNOWN['simpo'](sft_coeff=0.3),
    'cpo': KNOWN['cpo'](),
    'rm': KNOWN['rm'](regularization=0.1),
    'cost_model': KNOWN['cost_model'](scale_coeff=0.7, regularization=0.1),
}
TOKENS = [name for name, algorithm in ALGORITHMS.items() if algorithm.scores == 'tokens']
RESPONSES = [name for name in ALGORITHMS if name not in TOKENS]

# Lengths of the prompt, the chosen, the rejected and the unmatched response. Means of means would be far off.
LENGTHS = ((3, 12, 2, 4), (1, 2, 9, 7), (8, 1, 1, 2), (2, 5, 3, 11))
CUTS = {'whole': [[0, 1, 2, 3]], 'parts': [[0], [1, 2, 3]], 'uneven': [[3, 1], [], [0], [2]]}
# The micro-batches of each rank.
RANKS = [[[0], [1, 2]], [[3], []]]


def test_every_preference_algorithm_is_here() -> None:
    trained = {name for name, algorithm in KNOWN.items() if algorithm.trains and not algorithm.generates}
    assert {algorithm.name for algorithm in ALGORITHMS.values()} == trained - {'sft'}


@cache
def examples(name: str) -> list[Example]:
    """Four rows; KTO's have one response or both."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int, weight: float = 1.0) -> Piece:
        return Piece(torch.randint(1, 50, (length,), generator=generator), torch.full((length,), weight))

    found = []
    for number, (prompt, *answers) in enumerate(LENGTHS):
        opening, (chosen, rejected, other) = tokens(prompt, 0.0), map(tokens, answers)
        meta = {'margin': 0.3 * number, 'is_better_safe': number == 2, 'is_worse_safe': number != 1}
        found.append(Example(opening, [chosen, rejected], f'row {number}', meta))
        if ALGORITHMS[name].task == 'unpaired':
            kept = [(chosen, True), (rejected, False)][: 2 - number % 2]
            found[-1].unmatched, found[-1].responses = other, [response for response, _ in kept]
            found[-1].meta = {'desirable': [label for _, label in kept]}
    return found


def model(seed: int, dtype: torch.dtype) -> nn.Module:
    """Weights of noise: those of the stub are so small that all scores are alike."""
    register_segment_attention()
    model = tiny_llama()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    model.set_attn_implementation(SEGMENT_ATTENTION)
    return model.to(dtype)


def policy(scores: str, dtype: torch.dtype, seed: int = 1) -> nn.Module:
    if scores == 'responses':
        scorer = add_score_head(model(seed, dtype))
        with torch.no_grad():
            scorer.score.weight *= 20
        return ScorePolicy(scorer, TokenCollator(TextFamily(), 'padded'), dtype=dtype)
    return plain_policy(model(seed, dtype), dtype)


def sgd(module: nn.Module, rate: float = LEARNING_RATE) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate)


@cache
def reference(dtype: torch.dtype) -> Callable[[Batch], Scored]:
    module = policy('tokens', dtype, seed=REFERENCE_SEED)

    def score(batch: Batch) -> Scored:
        with torch.no_grad():
            return module(batch)

    return score


def roles_of(algorithm: Algorithm, score: Callable[[Batch], Scored]) -> dict[str, Callable[[Batch], Scored]]:
    return {'reference': score} if algorithm.refers else {}


def micro_batches(name: str, layout: str, cut: Sequence[Sequence[int]]) -> list[Batch]:
    collate, rows = TokenCollator(TextFamily(), layout), examples(name)
    return [collate([rows[number] for number in part]) for part in cut]


def gradients(name: str, layout: str, cut: Sequence[Sequence[int]]) -> tuple[StepResult, dict[str, Tensor]]:
    """What one micro-batch after another gives in this process, in float64."""
    algorithm = ALGORITHMS[name]
    module = policy(algorithm.scores, torch.float64)
    result = LocalEngine(module, sgd(module, 0.0)).train_step(
        micro_batches(name, layout, cut), algorithm, roles_of(algorithm, reference(torch.float64))
    )
    return result, {key: parameter.grad for key, parameter in module.model.named_parameters()}


@cache
def whole(name: str) -> tuple[StepResult, dict[str, Tensor]]:
    return gradients(name, 'padded', CUTS['whole'])


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_cut_and_layout_gives_the_gradient_of_the_whole(name: str) -> None:
    result, expected = whole(name)
    moved = {key for key, gradient in expected.items() if float(gradient.abs().max()) > 1e-6}
    # The score head has taken the place of the output embedding.
    assert set(expected) - moved == ({'lm_head.weight'} if name in RESPONSES else set())
    for layout in LAYOUTS:
        for cut in CUTS.values():
            other, found = gradients(name, layout, cut)
            assert other.terms == pytest.approx(result.terms, rel=1e-9, abs=1e-12), (layout, cut)
            assert other.loss == pytest.approx(result.loss, rel=1e-9)
            for key, wanted in expected.items():
                error = float((found[key] - wanted).abs().max())
                assert error <= 1e-6 * float(wanted.abs().max()) + 1e-12, f'{layout}, {cut}, {key}: off by {error:.2g}'


@pytest.mark.parametrize('name', ALGORITHMS)
def test_an_evaluation_gives_the_terms_of_the_step(name: str) -> None:
    algorithm = ALGORITHMS[name]
    engine = LocalEngine(module := policy(algorithm.scores, torch.float64), sgd(module))
    roles = roles_of(algorithm, reference(torch.float64))
    result = engine.evaluate(lambda: micro_batches(name, 'packed', CUTS['uneven']), algorithm, roles)
    assert result.terms == pytest.approx(whole(name)[0].terms, rel=1e-9, abs=1e-12)


def test_the_divergence_is_that_of_the_responses_of_other_rows() -> None:
    """It is above zero here, so that one of each micro-batch, or of other responses, would show in the gradients."""
    result, _ = whole('kto')
    ours, theirs = policy('tokens', torch.float64), reference(torch.float64)
    ratios = []
    for row in examples('kto'):
        alone = TokenCollator(TextFamily(), 'padded')([replace(row, responses=[row.unmatched], unmatched=None)])
        with torch.no_grad():
            ratios.append(float((ours(alone).values - theirs(alone).values).sum()))
    assert result.terms['kl'] == pytest.approx(sum(ratios) / len(ratios), rel=1e-9) and result.terms['kl'] > 0.1


def config(stage: int, ranks: int) -> dict[str, Any]:
    # Threshold 0: a tiny model would otherwise stay whole on every rank.
    zero = {'stage': stage, 'stage3_param_persistence_threshold': 0} if stage == 3 else {'stage': stage}
    return build_config(
        {'zero_optimization': zero}, micro_batch=2, accumulation=2, world_size=ranks, precision='fp32',
        max_grad_norm=0.0, optimizer='adamw_torch',
    )  # fmt: skip


def constant(base: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)


def train(rank: int, stage: int) -> dict[str, tuple[dict[str, float], dict[str, Tensor] | None]]:
    """Steps of all algorithms, one after the other: terms and weights after each."""
    frozen = FrozenEngine(policy('tokens', torch.float32, seed=REFERENCE_SEED), config(stage, 2), torch.device('cpu'))
    layout = LAYOUTS[stage % len(LAYOUTS)]
    found = {}
    for names in (TOKENS, RESPONSES):
        module = policy(ALGORITHMS[names[0]].scores, torch.float32)
        engine = DeepSpeedEngine(module, config(stage, 2), sgd(module), constant)
        for name in names:
            algorithm = ALGORITHMS[name]
            result = engine.train_step(
                micro_batches(name, layout, RANKS[rank]), algorithm, roles_of(algorithm, frozen.score)
            )
            again = engine.evaluate(
                lambda: micro_batches(name, layout, RANKS[rank]),  # noqa: B023 - called at once
                algorithm,
                roles_of(algorithm, frozen.score),
            )
            found[name] = result.terms, again.terms, engine.full_state_dict(engine.policy.model)
    return found


@cache
def one_after_the_other() -> dict[str, tuple[dict[str, float], dict[str, float], dict[str, Tensor]]]:
    """The same steps in this process, in float64."""
    found = {}
    for names in (TOKENS, RESPONSES):
        module = policy(ALGORITHMS[names[0]].scores, torch.float64)
        engine = LocalEngine(module, sgd(module))
        for name in names:
            algorithm = ALGORITHMS[name]
            roles = roles_of(algorithm, reference(torch.float64))
            batches = micro_batches(name, 'padded', CUTS['whole'])
            result = engine.train_step(batches, algorithm, roles)
            assert result.applied
            again = engine.evaluate(lambda: batches, algorithm, roles)  # noqa: B023 - called at once
            state = {key: value.detach().clone() for key, value in module.model.state_dict().items()}
            found[name] = result.terms, again.terms, state
    return found


@pytest.mark.parametrize('stage', [0, 1, 2, 3])
def test_two_ranks_step_as_one_process(stage: int) -> None:
    """One rank has a micro-batch of none; the reference is partitioned where the policy is."""
    expected = one_after_the_other()
    first, second = fork(train, 2, stage)
    for names in (TOKENS, RESPONSES):
        before = policy(ALGORITHMS[names[0]].scores, torch.float64).model.state_dict()
        for name in names:
            terms, again, state = expected[name]
            for rank in (first, second):
                assert rank[name][0] == pytest.approx(terms, rel=1e-4, abs=1e-5), name
                assert rank[name][1] == pytest.approx(again, rel=1e-4, abs=1e-5), name
            for key, wanted in state.items():
                error = float((first[name][2][key].double() - wanted).abs().max())
                change = float((wanted - before[key]).abs().max())
                assert error <= 2e-3 * change + 2e-6, f'{name}, {key}: moved by {change:.2g}, off by {error:.2g}'
            before = state
