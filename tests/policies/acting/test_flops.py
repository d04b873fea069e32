"""Operations of models that act are those that PyTorch meets, without what padding takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from align_anything.core.types import Batch, Example
from align_anything.policies.acting.policy import ActionPolicy
from tests.policies.acting.worlds import NAMED, NUMBERS, episode, policy_in, small
from tests.policies.test_flops import MORE


def measured(compute: Callable[[], Any]) -> tuple[Any, float]:
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        result = compute()
    return result, float(counter.get_total_flops())


def batch_of(policy: ActionPolicy, *lengths: int) -> Batch:
    space = policy.collate.spec.space
    made: list[Example] = [policy.collate.spec.encode(episode(length, space, length)) for length in lengths]
    return policy.collate(made)


@pytest.mark.parametrize(
    ('space', 'config'),
    [(NAMED, {'fusion': 'transformer'}), (NAMED, {}), (NUMBERS, {'head': 'gaussian'})],
    ids=['attended', 'film', 'numbers'],
)
def test_an_episode_takes_what_is_measured(space: Any, config: dict[str, Any], tmp_path: Path) -> None:
    policy, spec = policy_in(small(tmp_path / 'model', space, **config))
    policy.train()
    one = batch_of(policy, 5)
    assert policy.flops(one) == {}
    # What is counted once, of padded episodes, is known of others.
    policy(batch_of(policy, 2, 4, 3))
    counted = policy.flops(one)
    scored, forward = measured(lambda: policy(one))
    _, backward = measured(lambda: scored.values.sum().backward())
    config_of = spec.config
    # The counter takes attention for the whole square; a step sees those before it.
    unseen = 4 * config_of.hidden_size * config_of.decoder_layers * (25 - 15)
    found = sum(flops.forward for flops in counted.values())
    assert found == pytest.approx(forward - unseen, rel=1e-6)
    # Pixels have no gradient, and PyTorch computes a fifth product of attention.
    assert sum(flops.backward for flops in counted.values()) == pytest.approx(backward, rel=0.25)
    several = policy.flops(batch_of(policy, 1, 5))
    assert found < sum(flops.forward for flops in several.values()) < 1.5 * found


def test_what_is_frozen_goes_forward_alone(tmp_path: Path) -> None:
    policy, _ = policy_in(small(tmp_path / 'model', NAMED, fusion='transformer'))
    policy.model.visual_encoder.requires_grad_(False)
    batch = batch_of(policy, 4)
    policy(batch)
    found = policy.flops(batch)
    assert found['fusion'].backward == 0 < found['fusion'].forward
    assert found['language_model'].backward > 1.9 * found['language_model'].forward
    policy.model.requires_grad_(False)
    assert all(flops.backward == 0 for flops in policy.flops(batch).values())
    other = replace(batch, unmatched=batch_of(policy, 4))
    assert policy.flops(other)['fusion'].forward == 2 * found['fusion'].forward
    assert policy.flops(policy.collate([])) == {}
