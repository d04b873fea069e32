"""One optimizer step has the gradient of a plain loop, for every cut into micro-batches and every layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, groupby, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.sft import SFT
from align_anything.core.types import Example
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.models.structure import MEDIA_CODEC
from align_anything.models.trainable import enable_gradient_checkpointing
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.local_engine import LocalEngine
from tests.harness.pairwise import in_tiers
from tests.invariants.families import (
    CODED,
    FAMILIES,
    FAMILY_LAYOUTS,
    IMAGE,
    MEDIA,
    PADDED_ONLY,
    WIDER,
    accumulate_gradients,
    double_experts,
    family_of,
    freeze,
    load_plain,
    precision,
    rows,
)

Stirred = Callable[[str], Path]
# Float32 inside of transformers' norms again; a wrong cut is off by tenths.
RELATIVE = {torch.float64: 2e-5, torch.float32: 1e-3}
# Each family with one of its layouts in turn, and a text and an image family with all.
IN_TURN = [
    (family, layout)
    for number, (family, own) in enumerate(groupby(FAMILY_LAYOUTS, key=lambda pair: pair[0]))
    for place, (_, layout) in enumerate(own)
    if family in ('llama', 'llava') or family in PADDED_ONLY or place == number % 3
]
COMPONENTS = ('vision_tower', 'mm_proj', 'language_model')
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}


@cache
def reference(folder: Path) -> tuple[float, dict[str, Tensor | None]]:
    """Loss and gradients of the plain loop over all rows and groups, one at a time."""
    spec, singles, groups = rows(folder)
    model = load_plain(folder).train()
    loss = accumulate_gradients(model, [*singles, *groups])
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def engine(folder: Path, layout: str, frozen: str | None = None) -> LocalEngine:
    spec, *_ = rows(folder)
    register_segment_attention()
    dtype = precision(family_of(folder))
    model = double_experts(load_model(folder, spec.components, dtype=dtype))
    set_text_attention(model, 'sdpa' if layout == 'padded' else SEGMENT_ATTENTION)
    policy = TokenPolicy(freeze(model, spec, frozen), TokenCollator(spec, 'padded'), dtype=dtype)
    return LocalEngine(policy.train(), torch.optim.SGD(policy.parameters(), lr=0.0))


def cuts(examples: Sequence[Example]) -> dict[str, list[Sequence[Example]]]:
    """The same examples as micro-batches: all at once, one by one, and unevenly in another order with an empty one."""
    half = len(examples) // 2
    return {
        'whole': [examples],
        'single': [[example] for example in examples],
        'uneven': [examples[half + 1 :], [], examples[:1], examples[1 : half + 1]],
    }


def compare(engine: LocalEngine, expected: dict[str, Tensor | None]) -> None:
    found = dict(engine.module.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        gradient = found[name].grad
        if wanted is None:
            assert gradient is None or not gradient.any(), name
            continue
        error = float((gradient - wanted).abs().max())
        allowed = RELATIVE[wanted.dtype] * float(wanted.abs().max()) + ROUNDING[wanted.dtype]
        assert error <= allowed, f'{name}: off by {error:.2g} of {float(wanted.abs().max()):.2g}'


@pytest.mark.parametrize(('family', 'layout'), in_tiers(FAMILY_LAYOUTS, IN_TURN))
def test_gradients_are_those_of_a_plain_loop_for_every_cut(family: str, layout: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    loss, expected = reference(folder)
    trained = {
        spec.component_of(name) for name, gradient in expected.items() if gradient is not None and gradient.any()
    }
    assert trained == set(spec.components) - {MEDIA_CODEC}, 'every component gets a gradient'
    local = engine(folder, layout)
    # With several ranks, batches that lack a kind of media carry a dummy; it must leave no trace.
    kinds = MEDIA.get(family, ())
    batches_by_step = cuts([row.example for row in (*singles, *groups)])
    for dummies, (name, micro_batches) in zip((kinds, (), kinds), batches_by_step.items(), strict=True):
        collate = TokenCollator(spec, layout, dummy_kinds=dummies)
        result = local.train_step([collate(part) for part in micro_batches], SFT())
        assert result.loss == pytest.approx(loss, rel=1e-6), name
        compare(local, expected)


@pytest.mark.parametrize('family', IMAGE + WIDER + CODED)
def test_whatever_a_batch_holds_the_same_parameters_get_gradients_in_the_same_order(
    family: str, stirred: Stirred
) -> None:
    """ZeRO reduces gradients as they come: with another order, or one less, ranks would add up unlike ones."""
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    module = engine(folder, spec.layouts[-1]).module
    order: list[str] = []
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    collate = TokenCollator(spec, spec.layouts[-1], dummy_kinds=MEDIA.get(family, ()))
    orders = set()
    # One medium, text alone, all kinds at once, several responses, nothing.
    for examples in [*([row.example] for row in (*singles[:3], groups[1])), []]:
        order.clear()
        module(collate(examples)).values.sum().backward()
        orders.add(tuple(order))
    assert len(orders) == 1 and {spec.component_of(name) for name in order} == set(spec.components) - {MEDIA_CODEC}


@pytest.mark.parametrize(('family', 'frozen'), in_tiers(product(IMAGE, COMPONENTS), [*zip(IMAGE, cycle(COMPONENTS))]))
def test_gradients_of_other_components_stay_right_when_one_is_frozen(
    family: str, frozen: str, stirred: Stirred
) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    _, whole = reference(folder)
    expected = {name: None if spec.component_of(name) == frozen else gradient for name, gradient in whole.items()}
    local = engine(folder, 'shared_prefix', frozen)
    collate = TokenCollator(spec, 'shared_prefix', dummy_kinds=MEDIA[family])
    examples = [row.example for row in (*singles, *groups)]
    local.train_step([collate(part) for part in (examples[:3], examples[3:8], examples[8:])], SFT())
    compare(local, expected)


@pytest.mark.parametrize(
    ('family', 'frozen'),
    [
        *((family, None) for family in FAMILIES),
        *in_tiers(product(IMAGE, ['vision_tower']), [('llava', 'vision_tower')]),
    ],
)
def test_recomputing_activations_changes_no_gradient(family: str, frozen: str | None, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    _, whole = reference(folder)
    expected = {name: None if spec.component_of(name) == frozen else gradient for name, gradient in whole.items()}
    layout = spec.layouts[-1]
    local = engine(folder, layout, frozen)
    enable_gradient_checkpointing(local.module.model)
    collate = TokenCollator(spec, layout)
    examples = [row.example for row in (*singles, *groups)]
    local.train_step([collate(part) for part in (examples[:5], examples[5:])], SFT())
    compare(local, expected)
