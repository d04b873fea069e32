"""Policies that act: scores by closed forms, whatever stands beside, and refusals of what leaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from align_anything.core.actions import Actions
from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Message
from align_anything.models.acting.checkpoint import load_acting
from align_anything.models.acting.layers import positions
from align_anything.policies.acting.collator import ActionCollator
from align_anything.policies.acting.heads import make_head
from align_anything.policies.acting.heads.base import Targets
from align_anything.policies.acting.heads.gaussian import Gaussian
from align_anything.policies.acting.policy import ActionPolicy
from align_anything.policies.acting.score import ActionScorePolicy
from tests.policies.acting.worlds import NAMED, NUMBERS, episode, policy_in, small

CPU = torch.device('cpu')
VARIANTS = {
    'named': (NAMED, {}),
    'gaussian': (NUMBERS, {'head': 'gaussian'}),
    'l1': (NUMBERS, {'head': 'l1'}),
    'attended': (NAMED, {'fusion': 'transformer', 'sensors': {'held': 3}}),
}


@pytest.fixture(params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    space, config = VARIANTS[request.param]
    return small(tmp_path / 'model', space, **config)


def examples(policy: ActionPolicy, lengths: tuple[int, ...] = (4, 1, 3)) -> list[Example]:
    space = policy.collate.spec.space
    return [policy.collate.spec.encode(episode(length, space, seed)) for seed, length in enumerate(lengths)]


def test_scores_hang_on_nothing_beside_and_nothing_later(folder: Path) -> None:
    policy, _ = policy_in(folder)
    policy.check(policy, CPU)
    made = examples(policy)
    with torch.no_grad():
        beside = policy(policy.collate(made)).values
        alone = torch.cat([policy(policy.collate([example])).values for example in made])
    assert len(beside) == 8 and torch.allclose(beside, alone, atol=1e-6)


def test_one_prompt_is_looked_at_once(folder: Path) -> None:
    policy, spec = policy_in(folder)
    first, other = episode(4, spec.space, 0), episode(2, spec.space, 5)
    other[0] = first[0]
    group = spec.encode_group([first, other])
    batch = policy.collate([group])
    assert batch.stats['steps'] == 6 and len(batch.inputs.steps.frames) == 5 and batch.num_responses == 2
    apart = [Example(group.prompt, [response]) for response in group.responses]
    with torch.no_grad():
        assert torch.allclose(policy(batch).values, policy(policy.collate(apart)).values, atol=1e-6)


def test_gradients_are_those_of_any_cut(folder: Path) -> None:
    policy, _ = policy_in(folder)
    made = examples(policy, (3, 2, 4, 1))

    def gradients(cuts: list[list[Example]]) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        for cut in cuts:
            batch = policy.collate(cut)
            (policy(batch).values * batch.weights).sum().backward()
        return {name: own.grad.clone() for name, own in policy.named_parameters() if own.grad is not None}

    whole, cut = gradients([made]), gradients([made[:1], [], made[1:]])
    assert whole.keys() == cut.keys() and all(torch.allclose(whole[name], cut[name], atol=1e-5) for name in whole)


def test_windows_begin_anywhere_in_an_episode(tmp_path: Path) -> None:
    policy, _ = policy_in(small(tmp_path / 'model'))
    plain, made = policy.collate, [replace(item, source=f'rows.jsonl:{at}') for at, item in enumerate(examples(policy))]
    policy.collate = replace(plain, latest=900, seed=3)
    policy.check(policy, CPU)
    batch = policy.collate(made)
    first = batch.inputs.first
    assert len({*first.tolist()}) == 3 and 0 <= first.min() and first.max() <= 900
    # It hangs on the seed, the epoch and the row alone.
    assert policy.collate(made[1:]).inputs.first.tolist() == first[1:].tolist()
    for changed in (
        replace(plain, latest=900, seed=4)(made),
        policy.collate([replace(item, epoch=1) for item in made]),
    ):
        assert changed.inputs.first.tolist() != first.tolist()
    everywhere = torch.tensor([replace(plain, latest=40)._first(replace(made[0], epoch=epoch)) for epoch in range(400)])
    assert everywhere.min() == 0 and everywhere.max() == 40
    # The numbers of the steps are those of an episode that was under way.
    model, inputs = policy.model, batch.inputs
    with torch.no_grad():
        seen = model.look(inputs.steps)[inputs.step_of[:1, :4]]
        done = model.last_actions_embed(inputs.previous[:1, :4])
        late = positions(905, seen)[int(first[0]) :][:4]
        wanted = model.decoder(seen + done + late)
        assert torch.allclose(model(inputs.steps, inputs.step_of, inputs.previous, first)[:1, :4], wanted, atol=1e-6)
        assert not torch.allclose(policy(batch).values, policy(plain(made)).values, atol=1e-5)
    assert plain(made).inputs.first is None


@pytest.mark.parametrize('leak', ['later', 'beside'])
def test_what_leaks_is_refused(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = policy_in(small(tmp_path / 'model'))
    inner = policy.model.over_time
    leaking: dict[str, Callable[..., torch.Tensor]] = {
        'later': lambda seen, previous, first: inner(seen, previous) + seen.mean(1, keepdim=True),
        'beside': lambda seen, previous, first: inner(seen, previous) + seen.mean(0, keepdim=True),
    }
    monkeypatch.setattr(policy.model, 'over_time', leaking[leak])
    with pytest.raises(ModelError, match='its scores change by'):
        policy.check(policy, CPU)


def test_named_actions_score_as_a_categorical_distribution() -> None:
    logits, ids = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    scored = make_head('categorical').score(logits, Targets(ids), 0.7, entropy=True)
    wanted = TorchCategorical(logits=logits / 0.7)
    assert torch.allclose(scored.values, wanted.log_prob(ids)) and torch.allclose(scored.entropy, wanted.entropy())
    drawn = make_head('categorical').sample(logits, 0.0, [])
    assert drawn.ids.tolist() == logits.argmax(1).tolist()


def test_numbers_score_as_a_normal_distribution() -> None:
    said, values = torch.randn(5, 2, 3, 2), torch.randn(5, 3, 2)
    there = torch.ones(5, 3, dtype=torch.bool)
    targets = Targets(torch.zeros(5), values, there)
    wanted = Independent(Normal(said[:, 0], said[:, 1].exp() * 0.5), 2)
    scored = Gaussian().score(said, targets, 0.5, entropy=True)
    assert torch.allclose(scored.values, wanted.log_prob(values), atol=1e-4)
    assert torch.allclose(scored.entropy, wanted.entropy(), atol=1e-5)
    assert torch.allclose(Gaussian(mean=True).score(said, targets, 0.5).values * 6, scored.values, atol=1e-4)
    other = torch.randn(5, 2, 3, 2)
    plain, far = (Independent(Normal(own[:, 0], own[:, 1].exp()), 2) for own in (said, other))
    assert torch.allclose(Gaussian().divergence(said, other), kl_divergence(plain, far), rtol=1e-4)
    # Steps behind the end of a demonstration count for nothing.
    cut = replace(targets, said=torch.tensor([True, True, False]).expand(5, 3))
    moved = replace(cut, values=values + torch.tensor([0.0, 0.0, 9.0])[:, None])
    assert torch.equal(Gaussian().score(said, cut, 1.0).values, Gaussian().score(said, moved, 1.0).values)


def test_actions_without_a_likelihood_have_no_entropy() -> None:
    targets = Targets(torch.zeros(1), torch.ones(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    assert make_head('l1').score(torch.zeros(1, 2, 2), targets, 1.0).values.tolist() == [-1.0]
    with pytest.raises(ModelError, match='no entropy'):
        make_head('l1').score(torch.zeros(1, 2, 2), targets, 1.0, entropy=True)


@pytest.mark.parametrize('units', [False, True])
def test_critics_and_judges(units: bool, tmp_path: Path) -> None:
    spec = policy_in(small(tmp_path / 'model'))[1]
    collate = ActionCollator(spec, make_head('categorical'), behind=True)
    model = load_acting(tmp_path / 'model', torch.float32, scores=True)
    critic = ActionScorePolicy(model, collate, dtype=torch.float32, units=units)
    critic.check(critic, CPU)
    first = episode(3)
    other = [*first[:-1], {'role': 'assistant', 'content': [{'type': 'action', 'action': other_than(first[-1])}]}]
    with torch.no_grad():
        scored = [critic(collate([spec.encode(own)]), bootstrap=True) for own in (first, other)]
    if units:
        # What is worth something before an action knows nothing of it.
        assert torch.equal(scored[0].values, scored[1].values) and len(scored[0].values) == 3
    else:
        assert scored[0].values.shape == (1,) and not torch.equal(scored[0].values, scored[1].values)
    assert not torch.equal(scored[0].bootstrap, scored[1].bootstrap)


def other_than(message: Message) -> Actions:
    """Another action than that of a turn."""
    (done,) = message['content'][0]['action'].names
    return Actions(names=(next(name for name in NAMED.names if name != done),))
