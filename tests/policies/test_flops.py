"""The operations that are counted are those that PyTorch meets on its way, as far as both mean the same.

Two things they count apart. PyTorch takes attention for the whole rectangle of queries and keys, and its backward pass
for five products, one of them computed again; here what a position sees counts, and four products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop, sdpa_flop

from align_anything.core.flops import Flops, accelerator_of
from align_anything.core.types import Batch, Example, Piece
from align_anything.models import work
from align_anything.models.lora import apply_lora
from align_anything.models.pretrained_model import load_spec
from align_anything.models.trainable import enable_gradient_checkpointing, freeze_components
from align_anything.models.work import Span, Stack, Work, pairs, sizes_of_example
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.flops import _sizes
from align_anything.policies.token.policy import TokenPolicy
from tests.models.common import lora_cfgs
from tests.models.mixed import MEDIA, conversation_of, policy_of
from tests.models.samples import assistant, user

ATEN = torch.ops.aten
# What attention and experts run on a CPU, and products that are added in place: the counter does not know these.
MORE = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop(query, key, value),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop(grad, query, key, value)
    ),
    ATEN.addmm_: lambda _, left, right, **__: mm_flop(left, right),
    ATEN._grouped_mm: lambda left, right, *_, **__: _grouped(left, right),
}
SHORT = [user('What do you see in there? Tell me more of it'), assistant('Nothing at all, my friend.')]


def _grouped(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    # Rows that are spread over the experts, or a product of each expert's rows.
    return 2 * left[-2] * left[-1] * right[-1]


def measured(compute: Callable[[], Any]) -> tuple[Any, int]:
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        result = compute()
    return result, counter.get_total_flops()


def attention_of(policy: TokenPolicy, batch: Batch) -> dict[str, Flops]:
    """The operations of attention alone."""
    bare = {
        name: replace(stack, weights=0.0, trained=0.0, inner=0.0, recomputes=0.0)
        for name, stack in policy._work.stacks.items()
    }
    return Work(bare).of(_sizes(batch, policy.collate.spec))


def rectangle(span: Span, window: int | None, causal: bool) -> float:
    return pairs(span, window, causal) if not causal else float(span.length * (span.prefix + span.length))


def prepared(folder: Path, family: str, how: str) -> tuple[TokenPolicy, Batch]:
    spec = load_spec(str(folder), model_max_length=512)
    policy = policy_of(folder, spec, 'packed')
    policy.train()
    policy.collate = TokenCollator(spec, 'shared_prefix' if how == 'shared' else 'packed')
    if how == 'frozen':
        freeze_components(policy.model, spec.components, vision_tower=True, audio_tower=True)
    elif how == 'lora':
        policy.model = apply_lora(policy.model, lora_cfgs(), spec.components)
        policy = TokenPolicy(policy.model, policy.collate, dtype=torch.float32)
    elif how == 'recomputed':
        enable_gradient_checkpointing(policy.model)
    first = spec.encode(conversation_of(family) if family in MEDIA else SHORT)
    second = spec.encode([user('Hello you'), assistant('Hi.')])
    if how == 'shared':
        first = replace(first, responses=[*first.responses, *second.responses])
    return policy, policy.collate([first, second])


@pytest.mark.parametrize(('family', 'how', 'tolerance'), [
    ('llama', 'full', 1e-6),
    ('llama', 'shared', 1e-6),
    # The first layer passes no gradient on.
    ('llama', 'lora', 0.1),
    ('qwen3_moe', 'full', 1e-6),
    ('gemma3_text', 'recomputed', 1e-6),
    # The last of two layers of the tower goes forward and is not used. What projects features of a frozen tower passes
    # no gradient on.
    pytest.param('llava', 'full', 0.05, marks=pytest.mark.extended),
    ('llava', 'frozen', 0.02),
    pytest.param('qwen2_5_vl', 'full', 0.01, marks=pytest.mark.extended),
    ('qwen2_5_vl', 'frozen', 0.04),
    ('qwen2_audio', 'full', 0.02),
    ('qwen2_5_omni_thinker', 'full', 0.03),
])  # fmt: skip
def test_as_many_as_are_computed(
    family: str, how: str, tolerance: float, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = prepared(tiny(family), family, how)
    monkeypatch.setattr(work, 'pairs', rectangle)
    found = sum(policy.flops(batch).values(), Flops())
    fifth = sum(flops.backward / 4 for flops in attention_of(policy, batch).values())
    scored, forward = measured(lambda: policy(batch).values)
    _, backward = measured(lambda: scored.sum().backward())
    assert found.forward == pytest.approx(forward, rel=tolerance)
    assert found.backward + found.again + fifth == pytest.approx(backward, rel=tolerance)


@pytest.mark.parametrize('family', ['llama', 'qwen2_5_vl'])
def test_an_example_is_planned_as_it_is_counted(family: str, tiny: Callable[..., Path]) -> None:
    for how in ('full', 'shared'):
        policy, batch = prepared(tiny(family), family, how)
        spec = policy.collate.spec
        first = spec.encode(conversation_of(family) if family in MEDIA else SHORT)
        second = spec.encode([user('Hello you'), assistant('Hi.')])
        if how == 'shared':
            first = replace(first, responses=[*first.responses, *second.responses])
        planned = [policy._work.total(sizes_of_example(spec, row, how == 'shared')) for row in (first, second)]
        assert sum(planned, Flops()) == sum(policy.flops(batch).values(), Flops())


@pytest.mark.parametrize('window', [None, 1, 3, 7, 50])
@pytest.mark.parametrize('prefix', [0, 2, 9])
def test_pairs_are_those_that_see_each_other(window: int | None, prefix: int) -> None:
    for length in (1, 5, 20):
        seen = [min(index + 1, window or index + 1) for index in range(prefix, prefix + length)]
        assert pairs(Span(length, prefix), window, causal=True) == sum(seen)


def test_what_stands_in_for_rows_counts_nothing_and_other_rows_go_forward(tiny: Callable[..., Path]) -> None:
    spec = load_spec(str(tiny('llama')), model_max_length=512)
    policy = policy_of(tiny('llama'), spec, 'packed')
    assert policy.flops(policy.collate([])) == {}
    example = Example(Piece(torch.ones(9, dtype=torch.long), torch.zeros(9)), [_answer(4)])
    plain = sum(policy.flops(policy.collate([example])).values(), Flops())
    other = sum(policy.flops(policy.collate([replace(example, unmatched=_answer(4))])).values(), Flops())
    assert other.forward == 2 * plain.forward and other.backward == plain.backward > 0


def test_nothing_flows_through_what_is_frozen() -> None:
    frozen = Stack(10.0, inner=10.0, attention={None: 4.0}, causal=False)
    assert frozen.flops([Span(3)]) == Flops(30.0 + 36.0)
    passed = replace(frozen, backward=True, recomputes=1.0)
    assert passed.flops([Span(3)]) == Flops(66.0, 30.0 + 72.0, 66.0)
    assert passed.flops([Span(3)]).model == 168.0


@pytest.mark.parametrize(('name', 'tflops'), [
    ('NVIDIA H100 80GB HBM3', 989.4),
    ('NVIDIA H100 PCIe', 756.0),
    ('NVIDIA A100-SXM4-80GB', 312.0),
    ('NVIDIA H200', 989.4),
    ('NVIDIA L4', 121.0),
    ('NVIDIA L40S', 362.0),
])  # fmt: skip
def test_devices_are_known_by_their_names(name: str, tflops: float) -> None:
    assert accelerator_of(name).tflops == tflops
    assert accelerator_of('Radeon 9700') is None


def _answer(length: int) -> Piece:
    return Piece(torch.ones(length, dtype=torch.long), torch.ones(length))
