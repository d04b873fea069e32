"""Plans of denoisers: what a run counts, without a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.core.errors import SettingsError
from align_anything.core.flops import Accelerator, Flops
from align_anything.models.diffusion.checkpoint import denoiser_skeleton, load_denoiser, load_spec
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.trainers.runs.planning.denoisers import denoiser_subject, sizing_of
from align_anything.trainers.runs.planning.search import choices_of, plan_denoiser
from align_anything.trainers.runs.planning.subject import GIB, Asked
from tests.models.diffusion.cases import opened
from tests.policies.denoising.test_flops import rows_of

pytestmark = pytest.mark.extended
KNOWN = known_algorithms()
DEVICE = Accelerator(1.0, 1.0, 1e6)
LADDER = ('ema_on_cpu', 'optimizer', 'activation_offloading')
ASKED = Asked(1, 1.0, DEVICE, rows=4, efficiency=0.5)


@pytest.mark.parametrize('family', ['sd15', 'sd3', 'flux_kontext', 'qwen_image_edit', 'wan'])
def test_operations_are_those_that_a_run_counts(family: str) -> None:
    spec = opened(family).spec
    policy = DenoisingPolicy(load_denoiser(spec).train(), DenoisingCollator(spec), dtype=torch.float32)
    batch = policy.collate(rows_of(family, 4))
    policy(batch)
    found = plan_denoiser(spec, KNOWN['sft'](), ASKED)
    counted = sum(policy.flops(batch).values(), Flops())
    assert found.flops.forward == pytest.approx(counted.forward, rel=1e-6)
    assert found.flops.backward == pytest.approx(counted.backward, rel=1e-6) and found.units == 4


def test_what_algorithms_take_of_it(tiny: Callable[..., Path]) -> None:
    spec = small(tiny('sd3'))
    one, pairs = (plan_denoiser(spec, KNOWN[name](), ASKED) for name in ('sft', 'dpo'))
    # Two answers, each scored by a reference too, which is one more copy.
    assert pairs.flops.backward == 2 * one.flops.backward and pairs.flops.forward == 4 * one.flops.forward
    assert pairs.units == 2 * one.units and pairs.choices[0].memory.keys() == {'policy', 'reference'}
    # Five steps of each of two responses, the last of which is not trained; with guidance each is called twice.
    online = plan_denoiser(spec, KNOWN['grpo'](beta=0.0), replace(ASKED, generations=2, steps=5))
    forward = one.flops.forward / 4
    assert online.units == 4 * 2 * 4
    assert online.flops.backward == 2 * 4 * one.flops.backward
    # The update, and the scores of the policy that sampled.
    assert online.flops.forward == pytest.approx(2 * 2 * online.units * forward)
    assert online.rollouts.shared == pytest.approx(4 * 2 * 5 * 2 * forward / 0.5e12)
    assert online.seconds == online.rollouts.shared + online.best.seconds
    with pytest.raises(SettingsError, match='--qlora'):
        plan_denoiser(spec, KNOWN['sft'](), replace(ASKED, use_lora=True, use_bnb=True))


def test_less_memory_takes_what_costs_more(tiny: Callable[..., Path]) -> None:
    spec, asked, algorithm = small(tiny('sd3')), replace(ASKED, rows=1, ema=True), KNOWN['sft']()
    subject = denoiser_subject(spec, algorithm, asked)
    weights = sum(parameter.numel() for parameter in denoiser_skeleton(spec).parameters())
    whole = next(choices_of(subject, algorithm, asked))
    assert whole.memory['average (ema)'].weights == 4 * weights
    assert whole.settings.given == {'gradient_checkpointing': False}
    needs, seen = sum(own.total for own in whole.memory.values()), []
    for power in range(60):
        memory = 0.98**power * needs / GIB / 0.9
        found = next(choices_of(subject, algorithm, replace(asked, gpu_memory=memory)))
        given = found.settings.given if found.fits else None
        seen += [given] if given not in seen else []
    # Blocks are computed anew; then the average leaves the device, then moments have 8 bits, then inputs of blocks go.
    assert seen[:2] == [{'gradient_checkpointing': False}, {}] and seen[-1] is None
    first = [next(number for number, given in enumerate(seen) if given and name in given) for name in LADDER]
    assert first == sorted(first), seen


def small(folder: Path) -> DiffusionSpec:
    return load_spec(folder, sizing_of(replace(ASKED, image_size=64)))
