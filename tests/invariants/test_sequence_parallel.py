"""Ranks that share a row have together the gradient of a plain loop, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.distributed import all_reduce_sum, world_size
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.models.tower_calls import TOWERS
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.policies.token.shared_towers import SharedTower
from tests.harness.pairwise import in_tiers
from tests.harness.ranks import run_ranks
from tests.invariants.families import FAMILY_LAYOUTS, MEDIA, double_experts, family_of, precision, rows
from tests.invariants.runs import assembled, fork, settings, train, weights, zero_file
from tests.invariants.test_gradients import RELATIVE, ROUNDING, reference

CELLS = [(family, layout) for family, layout in FAMILY_LAYOUTS if layout != 'padded']
FIRST = [cell for cell in CELLS if cell in {('llama', 'packed'), ('qwen2_5_vl', 'shared_prefix')}]


FOUR = ('llama', 'qwen3_vl', 'qwen2_5_omni_thinker', 'gemma4')
"""Families with all kinds of towers, and with features added between layers, in groups of four ranks."""


def shared(rank: int, folder: Path, layout: str, ranks: int) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    """Loss, gradients summed over ranks, and for how many media each tower ran on this rank."""
    spec, singles, groups = rows(folder)
    dtype = precision(family_of(folder))
    register_segment_attention()
    model = double_experts(load_model(folder, spec.components, dtype=dtype))
    set_text_attention(model, SEGMENT_ATTENTION)
    collate = TokenCollator(spec, layout, dummy_kinds=MEDIA.get(family_of(folder), ()), ranks_per_row=ranks)
    policy = TokenPolicy(model, collate, dtype=dtype).train()
    batch = collate([row.example for row in (*singles, *groups)])
    loss = -(policy(batch).values * batch.weights).sum() / batch.weights.sum()
    loss.backward()
    found = {
        name: all_reduce_sum(torch.zeros_like(own) if own.grad is None else own.grad)
        for name, own in model.named_parameters()
    }
    towers = [tower for tower in towers_of(policy) if tower.computed or not tower.splits]
    assert all(tower.splits for tower in towers)
    return float(loss), found if rank == 0 else {}, [tower.computed for tower in towers]


def towers_of(policy: TokenPolicy) -> list[SharedTower]:
    names = [name for component in TOWERS for name in policy.collate.spec.components.get(component, ())]
    return [policy.model.get_submodule(name).forward for name in names]


@pytest.mark.parametrize(
    ('family', 'layout', 'ranks'),
    [
        *in_tiers([(*cell, 2) for cell in CELLS], [(*cell, 2) for cell in FIRST]),
        *(pytest.param(family, 'packed', 4, marks=pytest.mark.extended) for family in FOUR),
    ],
)
def test_gradients_are_those_of_a_plain_loop(
    family: str, layout: str, ranks: int, stirred: Callable[..., Path]
) -> None:
    # Heads are 32 wide, so that there are as many of them as ranks.
    folder = stirred(family, hidden=32 * ranks)
    loss, expected = reference(folder)
    (found_loss, found, computed), *others = run_ranks(shared, ranks, args=(folder, layout, ranks))
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name, wanted in expected.items():
        error = float((found[name] - (0 if wanted is None else wanted)).abs().max())
        scale = 0.0 if wanted is None else float(wanted.abs().max())
        allowed = RELATIVE[found[name].dtype] * scale + ROUNDING[found[name].dtype]
        assert error <= allowed, f'{name}: off by {error:.2g} of {scale:.2g}'
    # No rank runs a tower for more than its share of the media, of which each family has several.
    everything = [computed, *(own for *_, own in others)]
    for tower in zip(*everything, strict=True):
        assert max(tower) < sum(tower) / ranks + ranks


def trained(rank: int, folder: Path, zero: Path, changes: dict[str, object]) -> tuple[list[float], object]:
    """Losses and weights of two steps with the same rows on every rank, of which some micro-batches have no media."""
    family = family_of(folder)
    if 'feature_cache_dir' in changes:
        changes = {**changes, 'feature_cache_dir': zero.parent / f'{changes["feature_cache_dir"]}_of_{world_size()}'}
    run = assembled(settings(folder, family, zero, layout='packed', **changes), family)
    return train(run, folder, 0, 1), weights(run)


@pytest.mark.extended
@pytest.mark.parametrize(
    ('family', 'stage', 'changes'),
    [
        ('qwen3_vl', 3, {}),
        ('qwen2_5_omni_thinker', 3, {'freeze_audio_tower': False}),
        ('llava', 3, {'use_lora': True, 'lora_dropout': 0}),
        ('qwen3_vl', 2, {'gradient_checkpointing': True}),
        ('llava', 3, {'freeze_vision_tower': True, 'feature_cache_dir': 'features'}),
        # Both towers and the router loss of a mixture of experts.
        ('qwen3_omni_moe_thinker', 3, {'router_aux_loss_coef': 0.3}),
        ('qwen3_moe', 0, {'router_aux_loss_coef': 0.3}),
    ],
)
def test_a_run_ends_where_one_rank_does(family, stage, changes, stirred: Callable[..., Path], tmp_path: Path) -> None:
    folder = stirred(family, hidden=64)
    rows(folder)
    losses, expected = fork(trained, 1, folder, zero_file(tmp_path, stage), changes)[0]
    together = {**changes, 'sequence_parallel_size': 2}
    (found_losses, found), _ = fork(trained, 2, folder, zero_file(tmp_path, stage), together)
    assert found_losses == pytest.approx(losses, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f'{n}: {text}')
