"""The operations of an update of a denoiser, counted in its first forward pass of a shape, are those of both passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align_anything.core.flops import Flops
from align_anything.core.types import Example, Piece
from align_anything.models.diffusion.checkpoint import enable_gradient_checkpointing, load_denoiser
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance
from tests.models.diffusion.cases import opened
from tests.policies.denoising.toy import policy_of, prompt, rollout, row
from tests.policies.test_flops import MORE

DENOISER = 'denoiser'


def rows_of(family: str, count: int) -> list[Example]:
    found = opened(family)
    blank = found.spec.blank_prompt()
    (conditions,) = found.spec.encode_read(found.frozen, [found.spec.read(blank)])
    if blank.pictures:
        conditions |= found.spec.encode_pictures(found.frozen, blank)
    asked = Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0), media=conditions)
    made = Piece(torch.arange(1), torch.ones(1), media={LATENTS: torch.randn(found.shape)})
    return [Example(asked, [made], f'row {number}') for number in range(count)]


@pytest.mark.parametrize('family', ['sd15', 'sd3', pytest.param('wan', marks=pytest.mark.extended)])
def test_as_many_as_are_computed(family: str) -> None:
    spec = opened(family).spec
    policy = DenoisingPolicy(load_denoiser(spec).train(), DenoisingCollator(spec), dtype=torch.float32)
    batch, more = policy.collate(rows_of(family, 2)), policy.collate(rows_of(family, 3))
    assert policy.flops(batch) == {}
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        scored = policy(batch).values
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        scored.sum().backward()
    found = policy.flops(batch)[DENOISER]
    assert found.forward == forward
    # The first convolution passes nothing on, and attention is computed once more in PyTorch's kernels.
    assert found.backward == pytest.approx(counter.get_total_flops(), rel=0.08) and found.again == 0
    # Of other numbers of rows that have these shapes it is known too.
    assert policy.flops(more)[DENOISER].model == pytest.approx(1.5 * found.model)
    enable_gradient_checkpointing(policy.model, spec)
    assert policy.flops(batch)[DENOISER].again == forward
    policy.requires_grad_(False)
    assert policy.flops(batch)[DENOISER] == Flops(forward)


def test_what_follows_no_prompt_goes_forward_alone() -> None:
    from align_anything.policies.denoising.transitions import Kernel

    policy = policy_of('flow', guidance=Guidance(3.0), kernel=Kernel('flow_sde', 0.7))
    example = replace(row(0), unconditional=prompt(''))
    batch = policy.collate([replace(example, responses=[rollout(policy, example, (0, 1), 3)])])
    policy(batch)
    found = policy.flops(batch)[DENOISER]
    plain = replace(batch, inputs=replace(batch.inputs, unconditional=None))
    assert found.forward == pytest.approx(2 * policy.flops(plain)[DENOISER].forward, rel=0.05)
    assert found.backward == policy.flops(plain)[DENOISER].backward
    assert policy.flops(policy.collate([])) == {}
