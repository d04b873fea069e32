"""Rollouts of denoisers: without noise what the pipeline makes, with noise what the policy scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from align_anything.core.types import Example, Piece, Response
from align_anything.models.diffusion.packing import pack
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.collator import (
    FIRST_LEVEL,
    LEVEL,
    NEXT,
    NEXT_LEVEL,
    SAMPLE,
    DenoisingCollator,
)
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.denoising import DenoisingRollouts, DenoisingSampling, Window
from align_anything.rollouts.experience import complete
from tests.models.diffusion.cases import CASES, PROMPT, STEPS, Opened, conditions, opened, patched

CPU = torch.device('cpu')
NOISY = {'sd3': Kernel('flow_sde', 0.7), 'sd15': Kernel('ddim', 1.0)}
FAMILIES = ('sd3', 'sd15')


def prompts(tiny: Opened, *texts: str) -> list[Example]:
    """Examples without responses, with the conditions of their prompts and of the empty one."""
    *own, empty = conditions(tiny, *texts, '')
    nothing = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    return [
        Example(Piece(*nothing, media=media), [], str(at), unconditional=Piece(*nothing, media=empty))
        for at, media in enumerate(own)
    ]


def rollouts(tiny: Opened, batch_size: int = 8, pipeline: Any = None) -> DenoisingRollouts:
    return DenoisingRollouts(
        tiny.denoiser, tiny.spec, pipeline or tiny.frozen, dtype=torch.float32, device=CPU, batch_size=batch_size
    )


def noisy(family: str, **changes: Any) -> DenoisingSampling:
    """Two responses by six steps, of which all but the last sample."""
    return DenoisingSampling(**{'responses': 2, 'steps': 6, 'kernel': NOISY[family], **changes})


def generated(family: str, sampling: DenoisingSampling, version: int = 0, **how: Any) -> list[list[Response]]:
    tiny = opened(family)
    engine = rollouts(tiny, **how)
    engine.sync(version)
    return engine.generate(prompts(tiny, PROMPT, 'two blue circles'), sampling)


def pixels(response: Response) -> numpy.ndarray:
    (part,) = response.parts
    return numpy.asarray(part['image'], dtype=numpy.int64)


@pytest.mark.parametrize('scale', [1.0, 3.0])
@pytest.mark.parametrize('family', FAMILIES)
def test_without_noise_it_is_the_picture_of_the_pipeline(family: str, scale: float) -> None:
    tiny = opened(family)
    call = {**CASES[family].call, 'guidance_scale': scale}
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        (own,) = tiny.whole(prompt=PROMPT, num_inference_steps=STEPS, generator=generator, **call).images
    sampling = DenoisingSampling(seed=7, steps=STEPS, guidance=Guidance(scale))
    ((response,),) = rollouts(tiny).generate(prompts(tiny, PROMPT), sampling)
    assert numpy.abs(pixels(response) - numpy.asarray(own, dtype=numpy.int64)).max() <= 1
    assert len(response.ids) == 0 and pixels(response).std() > 0


@pytest.mark.parametrize('family', ['qwen_image', 'qwen_image_edit', 'flux_kontext'])
def test_guided_by_a_second_prompt_it_ends_where_the_pipeline_does(family: str) -> None:
    tiny, case = opened(family), CASES[family]
    generator = torch.Generator().manual_seed(7)
    call = {**case.call, 'true_cfg_scale': 1000.0, 'negative_prompt': '', 'output_type': 'latent'}
    with torch.no_grad(), patched(tiny.whole, case.patches):
        (own,) = tiny.whole(prompt=PROMPT, num_inference_steps=STEPS, generator=generator, **call).images
    for rescale in (True, False):
        guidance = Guidance(1000.0, rescale, case.guidance)
        sampling = DenoisingSampling(seed=7, steps=STEPS, guidance=guidance, units='draws')
        ((response,),) = rollouts(tiny).generate(prompts(tiny, PROMPT), sampling)
        same = torch.allclose(pack(response.media[LATENTS][None])[0], own, atol=1e-3)
        assert same == (rescale == tiny.spec.rescales_guidance)


@pytest.mark.parametrize('scale', [1.0, 2.0])
@pytest.mark.parametrize('family', FAMILIES)
def test_the_policy_scores_what_was_sampled_alike(family: str, scale: float) -> None:
    tiny, guidance = opened(family), Guidance(scale)
    examples = prompts(tiny, PROMPT, 'two blue circles')
    responses = rollouts(tiny).generate(examples, noisy(family, guidance=guidance, window=Window(2, 1, 1)))
    completed = complete(examples, responses)
    collate = DenoisingCollator(tiny.spec, kernel=NOISY[family], guidance=guidance)
    policy = DenoisingPolicy(tiny.denoiser, collate, dtype=torch.float32)
    batch = collate(completed)
    with torch.no_grad():
        values = policy(batch).values
    sampled = batch.per_unit['rollout']
    assert len(sampled) == 2 * 2 * 2 and sampled.std() > 0
    # The trainer may cut them otherwise than the rollout did.
    torch.testing.assert_close(values, sampled, rtol=0, atol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_response_is_its_trained_steps(family: str) -> None:
    tiny = opened(family)
    levels = tiny.spec.levels(6, tiny.shape)
    for response in (response for own in generated(family, noisy(family)) for response in own):
        assert response.ids.tolist() == [0, 1, 2, 3, 4] and response.weights.tolist() == [1] * 5
        torch.testing.assert_close(response.media[LEVEL], levels[:5], rtol=0, atol=0)
        torch.testing.assert_close(response.media[NEXT_LEVEL], levels[1:6], rtol=0, atol=0)
        assert set(response.media[FIRST_LEVEL].tolist()) == {float(levels[1])}
        # Each step begins with what the one before it ended with.
        assert torch.equal(response.media[SAMPLE][1:], response.media[NEXT][:-1])


def test_windows_slide_or_jump() -> None:
    sliding = Window(2, 0, 2, slides_every=3)
    begun = [
        response.ids.tolist()
        for at in (0, 2, 3, 6, 9)
        for response in generated('sd3', noisy('sd3', window=sliding), at)[0]
    ]
    assert begun[::2] == begun[1::2] == [[0, 1], [0, 1], [1, 2], [2, 3], [0, 1]]
    jumping = [Window(2, 1).steps(8, 0, torch.Generator().manual_seed(seed)).start for seed in range(40)]
    assert {*jumping} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ('total', 'window'), [(1, Window()), (4, Window(4)), (6, Window(2, 3, 4)), (6, Window(2, 3, 2))]
)
def test_a_window_that_does_not_fit_is_told(total: int, window: Window) -> None:
    assert window.problem(total)
    assert not Window(2, 1, 3).problem(6) and not Window().problem(2)


def test_steps_outside_of_the_window_have_no_noise() -> None:
    first, second = (
        generated('sd3', noisy('sd3', window=Window(1, 2, 2), kernel=replace(NOISY['sd3'], noise_level=level)))
        for level in (0.3, 0.9)
    )
    for one, other in zip(first[0], second[0], strict=True):
        assert torch.equal(one.media[SAMPLE], other.media[SAMPLE])
        assert not torch.equal(one.media[NEXT], other.media[NEXT])


@pytest.mark.parametrize('same', [True, False])
def test_responses_to_a_prompt_may_start_alike(same: bool) -> None:
    (one, two), (other, _) = generated('sd3', noisy('sd3', same_noise=same))
    starts = [response.media[SAMPLE][0] for response in (one, two, other)]
    assert torch.equal(starts[0], starts[1]) == same and not torch.equal(starts[0], starts[2])
    assert not torch.equal(one.media[NEXT][0], two.media[NEXT][0])


def test_how_many_are_generated_at_once_changes_no_start() -> None:
    together, alone = generated('sd3', noisy('sd3')), generated('sd3', noisy('sd3'), batch_size=1)
    for one, other in zip(sum(together, []), sum(alone, []), strict=True):
        assert torch.equal(one.media[SAMPLE][0], other.media[SAMPLE][0])


def test_evaluations_have_steps_and_guidance_of_their_own_and_no_noise() -> None:
    tiny, calls = opened('sd3'), []
    evaluation = DenoisingSampling(steps=STEPS, guidance=Guidance(3.0))
    sampling = replace(noisy('sd3', seed=7, evaluation=evaluation), responses=1).of_evaluation()
    hook = tiny.denoiser.register_forward_pre_hook(lambda *given: calls.append(1))
    ((response,),) = rollouts(tiny).generate(prompts(tiny, PROMPT), sampling)
    hook.remove()
    assert len(calls) == 2 * STEPS and len(response.ids) == 0
    ((plain,),) = rollouts(tiny).generate(prompts(tiny, PROMPT), replace(evaluation, seed=7))
    assert (pixels(response) == pixels(plain)).all()


def test_what_trains_on_draws_keeps_the_clean_latents() -> None:
    tiny = opened('sd3')
    for response in sum(generated('sd3', noisy('sd3', units='draws', kernel=None)), []):
        assert response.ids.tolist() == [0] and float(response.weights.sum()) == 1
        (decoded,) = tiny.spec.decode_latents(tiny.frozen, response.media[LATENTS][None])
        assert (numpy.asarray(decoded, dtype=numpy.int64) == pixels(response)).all()


def test_decoding_needs_no_text_encoder() -> None:
    tiny = opened('sd3')
    light = tiny.spec.open(CPU, decodes_only=True)
    networks = {name for name, part in light.components.items() if isinstance(part, nn.Module)}
    assert networks == {'vae'}
    ((own,),) = rollouts(tiny).generate(prompts(tiny, PROMPT), DenoisingSampling(steps=STEPS))
    ((light_one,),) = rollouts(tiny, pipeline=light).generate(prompts(tiny, PROMPT), DenoisingSampling(steps=STEPS))
    assert (pixels(own) == pixels(light_one)).all()


def test_the_denoiser_is_left_as_it_was() -> None:
    tiny = opened('sd3')
    tiny.denoiser.train()
    generated('sd3', noisy('sd3'))
    assert tiny.denoiser.training
    tiny.denoiser.eval()
