"""Two ranks that share a row have together the gradient of a plain loop, for every family; or the run refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.distributed import all_reduce_sum
from align_anything.core.errors import ModelError
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.pairwise import in_tiers
from tests.harness.ranks import run_ranks
from tests.invariants.families import FAMILY_LAYOUTS, MEDIA, double_experts, family_of, precision, rows
from tests.invariants.test_gradients import RELATIVE, ROUNDING, reference

# They add to the states of media tokens between layers, or have inputs of their own for each layer.
REFUSED = ('qwen3_vl', 'qwen3_omni_moe_thinker', 'gemma4')
CELLS = [(family, layout) for family, layout in FAMILY_LAYOUTS if layout != 'padded' and family not in REFUSED]
FIRST = [cell for cell in CELLS if cell in {('llama', 'packed'), ('qwen2_5_vl', 'shared_prefix')}]


def shared(rank: int, folder: Path, layout: str) -> tuple[float, dict[str, torch.Tensor]]:
    spec, singles, groups = rows(folder)
    dtype = precision(family_of(folder))
    register_segment_attention()
    model = double_experts(load_model(folder, spec.components, dtype=dtype))
    set_text_attention(model, SEGMENT_ATTENTION)
    collate = TokenCollator(spec, layout, dummy_kinds=MEDIA.get(family_of(folder), ()), ranks_per_row=2)
    policy = TokenPolicy(model, collate, dtype=dtype).train()
    batch = collate([row.example for row in (*singles, *groups)])
    loss = -(policy(batch).values * batch.weights).sum() / batch.weights.sum()
    loss.backward()
    found = {
        name: all_reduce_sum(torch.zeros_like(own) if own.grad is None else own.grad)
        for name, own in model.named_parameters()
    }
    return float(loss), found if rank == 0 else {}


@pytest.mark.parametrize(('family', 'layout'), in_tiers(CELLS, FIRST))
def test_gradients_are_those_of_a_plain_loop(family: str, layout: str, stirred: Callable[..., Path]) -> None:
    # Heads are 32 wide, so that there are two of them.
    folder = stirred(family, hidden=64)
    loss, expected = reference(folder)
    (found_loss, found), _ = run_ranks(shared, 2, args=(folder, layout))
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name, wanted in expected.items():
        error = float((found[name] - (0 if wanted is None else wanted)).abs().max())
        scale = 0.0 if wanted is None else float(wanted.abs().max())
        allowed = RELATIVE[found[name].dtype] * scale + ROUNDING[found[name].dtype]
        assert error <= allowed, f'{name}: off by {error:.2g} of {scale:.2g}'


def refused(rank: int, folder: Path) -> str:
    spec, *_ = rows(folder)
    dtype = torch.float32
    register_segment_attention()
    model = load_model(folder, spec.components, dtype=dtype)
    set_text_attention(model, SEGMENT_ATTENTION)
    kinds = MEDIA.get(family_of(folder), ())
    policy = TokenPolicy(model, TokenCollator(spec, 'packed', kinds, ranks_per_row=2), dtype=dtype)
    with pytest.raises(ModelError) as error:
        policy.check(policy, torch.device('cpu'))
    return str(error.value)


@pytest.mark.extended
@pytest.mark.parametrize('family', REFUSED)
def test_families_that_need_all_states_between_layers_are_refused(family, stirred: Callable[..., Path]) -> None:
    for words in run_ranks(refused, 2, args=(stirred(family, hidden=64),)):
        assert 'cannot share rows among 2 ranks' in words
        assert 'sequence_parallel_size: 1' in words
