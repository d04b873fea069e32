"""Numbers by kind of unit: against plain loops in float64, and nothing at all where there are no codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.grpo import GRPO
from align_anything.algorithms.sft import SFT
from align_anything.core.types import Batch, Example, Scored
from align_anything.engines.by_kind import ByKind
from align_anything.engines.step import run_step
from align_anything.models.codes import KindOfCodes, MediaCodes
from align_anything.policies.token.collator import TokenCollator
from tests.policies.stub import TextFamily, piece

TEXT = 40
PICTURE = KindOfCodes('image', (5,), (TEXT,), opening=(30,), closing=(31,), size=(1, 3))
SOUND = KindOfCodes('audio', (2, 2), (TEXT + 5, TEXT + 7), opening=(32,), closing=(33,))
CODES = MediaCodes({'image': PICTURE, 'audio': SOUND}, {})
RESPONSES = [[21, 30, 40, 44, 41, 22], [23, 24], [32, 45, 47, 46, 48, 33]]


@dataclass(frozen=True)
class WritingFamily(TextFamily):
    """A family with pictures of three codes, and sounds of two books."""

    codes: MediaCodes = CODES


def kind_of(token: int) -> str:
    """The kind of an id, written out."""
    # What ends a sound is one among the codes of its first book.
    return 'image' if 40 <= token < 45 else 'audio' if token >= 45 or token == 33 else 'text'


def batch_of(*responses: list[int], **names: float) -> Batch:
    """One prompt with these responses, and per-unit values that differ from unit to unit."""
    pieces = [piece(*ids, weight=1.0) for ids in responses]
    random = torch.Generator().manual_seed(1)
    for own in pieces:
        own.per_unit = {name: torch.randn(len(own), generator=random).double() * 0.1 for name in names}
    return TokenCollator(WritingFamily(), 'packed')([Example(piece(11, 12), pieces)])


def scored_of(batch: Batch) -> Scored:
    random = torch.Generator().manual_seed(0)
    values = -torch.rand(len(batch.weights), generator=random).double()
    return Scored(values.requires_grad_(), entropy=torch.rand(len(values), generator=random).double())


def test_every_unit_has_one_kind() -> None:
    batch = batch_of(*RESPONSES)
    ids = sum(RESPONSES, [])
    assert list(batch.kinds) == ['text', 'image', 'audio']
    for kind, units in batch.kinds.items():
        assert units.tolist() == [kind_of(token) == kind for token in ids]
    # A batch without rows has the same names, for all ranks add up the same numbers.
    empty = TokenCollator(WritingFamily(), 'packed')([])
    assert list(empty.kinds) == list(batch.kinds) and list(ByKind(SFT()).counts(empty)) == list(
        ByKind(SFT()).counts(batch)
    )


def numbers(algorithm: object, batch: Batch, scored: Scored, estimates: Mapping[str, float] | None = None):
    """Each number that is told: sum over count."""
    told = ByKind(algorithm)
    terms, counts = told.terms(batch, scored, estimates or {}), told.counts(batch)
    assert terms.keys() == counts.keys()
    return {name: float(terms[name].detach() / counts[name]) for name in terms if counts[name]}


def test_the_loss_of_each_kind_is_that_of_its_units() -> None:
    batch = batch_of(*RESPONSES)
    scored, ids = scored_of(batch), sum(RESPONSES, [])
    found = numbers(SFT(), batch, scored)
    for kind in batch.kinds:
        own = [
            -float(value) for value, token in zip(scored.values.detach(), ids, strict=True) if kind_of(token) == kind
        ]
        assert found[f'loss/{kind}'] == pytest.approx(sum(own) / len(own), rel=1e-6)
    assert numbers(SFT(), batch_of([21, 22]), scored_of(batch_of([21, 22]))).keys() == {'loss', 'loss/text'}


def test_ratio_entropy_and_kl_of_each_kind() -> None:
    batch = batch_of(*RESPONSES, old=0, rollout=0, reference=0, advantage=0)
    scored, ids = scored_of(batch), sum(RESPONSES, [])
    algorithm = GRPO(num_generations=2, loss_aggregation='token-mean', ptx_coeff=0.0, beta=0.1)
    found = numbers(algorithm, batch, scored)
    for kind in batch.kinds:
        at = [number for number, token in enumerate(ids) if kind_of(token) == kind]
        old, reference = batch.per_unit['old'][at], batch.per_unit['reference'][at]
        values, entropies = scored.values[at].detach(), scored.entropy[at]
        gaps = reference - values
        for name, units in {
            'ratio': (values - old).exp(),
            'entropy': entropies,
            'kl': gaps.exp() - 1 - gaps,
        }.items():
            assert found[f'{name}/{kind}'] == pytest.approx(float(units.mean()), rel=1e-6), name


def test_rewards_of_pairs_add_up() -> None:
    batch = batch_of(RESPONSES[0], RESPONSES[2], reference=0)
    found = numbers(DPO(), batch, scored_of(batch))
    for name in ('chosen_reward', 'rejected_reward', 'reward_margin'):
        assert found[name] == pytest.approx(sum(found[f'{name}/{kind}'] for kind in batch.kinds), rel=1e-6)
    assert found['rejected_reward/image'] == 0.0 != found['chosen_reward/image']
    assert 'preference_loss/image' not in found


def test_what_is_told_has_no_part_in_the_gradient() -> None:
    batch = batch_of(*RESPONSES)
    grads = []
    for objective in (SFT(), ByKind(SFT())):
        scored, count = scored_of(batch), objective.counts(batch)
        run_step(
            [batch],
            objective,
            {name: float(own) for name, own in count.items()},
            {},
            score=lambda batch, scored=scored: scored,
            backward=lambda loss, last: loss.backward(),
            world_size=1,
            reduce_sum=lambda tensor: tensor,
        )
        grads.append(scored.values.grad)
    assert grads[0].equal(grads[1])


def test_without_codes_it_is_the_objective_itself() -> None:
    batch = replace(batch_of(*RESPONSES), kinds={})
    scored = scored_of(batch)
    assert ByKind(SFT()).counts(batch) == SFT().counts(batch)
    assert ByKind(SFT()).terms(batch, scored, {}).keys() == SFT().terms(batch, scored, {}).keys()
    assert not TokenCollator(TextFamily(), 'packed')([Example(piece(1), [piece(2, weight=1.0)])]).kinds


def test_heads_that_score_responses_tell_no_kinds() -> None:
    told = {name: kind.told_by_kind for name, kind in known_algorithms().items()}
    assert told['sft'] and not any(told[name] for name, kind in known_algorithms().items() if kind.scores != 'tokens')


def test_advantages_are_weighed_by_kind() -> None:
    """Against a plain loop: the surrogate of each unit with the advantage of its kind."""
    batch = batch_of(*RESPONSES, old=0, rollout=0, advantage=0)
    weights = {'text': 0.5, 'image': 2.0, 'audio': 0.0}
    algorithm = GRPO(
        num_generations=2,
        loss_aggregation='token-mean',
        ptx_coeff=0.0,
        beta=0.0,
        rollout_correction_cap=None,
        emitted_advantage_weights=weights,
    )
    scored = scored_of(batch)
    expected = 0.0
    for number, token in enumerate(sum(RESPONSES, [])):
        ratio = (scored.values[number].detach() - batch.per_unit['old'][number]).exp()
        advantage = weights[kind_of(token)] * batch.per_unit['advantage'][number]
        expected -= float(torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    found = algorithm.terms(batch, scored, {})['policy_loss']
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)
    found.backward()
    assert not scored.values.grad[batch.kinds['audio']].any() and scored.values.grad[batch.kinds['text']].any()
