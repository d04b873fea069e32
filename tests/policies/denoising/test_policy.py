"""Draws and denoising steps through the engine: no cut, neighbour or role changes what is sampled or scored."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.core.errors import ModelError, SampleError, SettingsError, TrainingError
from align_anything.core.types import Batch, Cost, Example, Scored
from align_anything.engines.step import StepResult
from align_anything.losses.advantages import group_relative
from align_anything.losses.nft import contrast
from align_anything.policies.denoising.collator import DenoisingCollator, DenoisingInputs
from align_anything.policies.denoising.noise import Noise
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance, predict, rescaled
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.experience import record
from tests.harness.local_engine import LocalEngine
from tests.policies.denoising.toy import SHAPE, ToySpec, clean, policy_of, prompt, rollout, row

KNOWN = known_algorithms()
OFFLINE: dict[str, Algorithm] = {
    'sft': KNOWN['sft'](),
    'dpo': KNOWN['dpo'](scale_coeff=5.0, sft_coeff=0.3),
    'kto': KNOWN['kto'](scale_coeff=5.0, scale_worse=0.7),
}
GRPO = partial(KNOWN['grpo'], num_generations=2, ptx_coeff=0.0, rollout_correction_cap=None, scale_rewards='batch')
ONLINE: dict[str, Algorithm] = {
    'grpo': GRPO(beta=0.3, clip_range_ratio=0.02),
    'gspo': GRPO(beta=0.0, importance_level='sequence', clip_range_ratio=0.02),
    'grpo_guard': GRPO(beta=0.0, loss_type='grpo_guard', clip_range_ratio=0.02),
    'flow_dppo': GRPO(beta=0.3, loss_type='flow_dppo', max_drift=1e-3),
}
CUTS: tuple[list[list[int]], ...] = ([[0, 1, 2, 3]], [[0], [1, 2, 3]], [[3, 1], [], [0], [2]])
CPU = torch.device('cpu')


def rows_of(name: str) -> list[Example]:
    rows = [row(number, responses=1 if name == 'sft' else 2, draws=(1, 2, 4)[number % 3]) for number in range(4)]
    if name == 'kto':
        rows = [replace(item, unmatched=clean(100 + at)) for at, item in enumerate(rows)]
    return rows


def generated(policy: DenoisingPolicy, seed: int = 0) -> list[Example]:
    """Two responses to each prompt, of trained steps of a window that differs by prompt."""
    windows = ((0, 1, 2), (1, 2), (3,), (0, 4))
    rows = [replace(row(number), unconditional=prompt(''), epoch=seed) for number in range(4)]
    return [
        replace(item, responses=[rollout(policy, item, windows[at], 10 * at + own + seed) for own in range(2)])
        for at, item in enumerate(rows)
    ]


def infer(policy: DenoisingPolicy, **asked: bool) -> Any:
    @torch.no_grad()
    def scored(batch: Batch) -> Scored:
        return policy(batch, **asked)

    return scored


def recorded(policy: DenoisingPolicy, old: DenoisingPolicy, reference: DenoisingPolicy) -> list[Example]:
    """What a loop would train on: scores and predictions of both, and advantages."""
    examples = generated(old)
    for name, by in (('old', old), ('reference', reference)):
        record(name, infer(by, prediction=True), policy.collate, [examples[:1], [], examples[1:]], CPU)
    scores = torch.tensor([1.0, 0.0, 0.0, 3.0, 2.0, 2.5, -1.0, 1.0])
    advantages = group_relative(scores, torch.arange(4).repeat_interleave(2), scale='none')
    for at, response in enumerate(own for item in examples for own in item.responses):
        response.per_unit['advantage'] = advantages[at].expand(response.units)
    return examples


def step(
    policy: DenoisingPolicy, algorithm: Algorithm, examples: Sequence[Example], cut: Any, roles: Any = None
) -> tuple[StepResult, dict[str, Tensor]]:
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    batches = [policy.collate([examples[number] for number in part]) for part in cut]
    result = engine.train_step(batches, algorithm, roles)
    return result, {key: value.grad.clone() for key, value in policy.named_parameters()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], words: Any) -> None:
    for key, value in wanted.items():
        assert value.abs().max() > 1e-8, key
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-10, msg=f'{key}, {words}')


@pytest.mark.parametrize('process', ['flow', 'v_prediction'])
@pytest.mark.parametrize('name', OFFLINE)
def test_every_cut_of_draws_gives_the_same_gradients(name: str, process: str) -> None:
    examples, reference = rows_of(name), policy_of(process, seed=5).requires_grad_(False)
    roles = {} if name == 'sft' else {'reference': reference}
    steps = [step(policy_of(process), OFFLINE[name], examples, cut, roles) for cut in CUTS]
    for cut, (result, gradients) in zip(CUTS, steps, strict=True):
        assert result.loss == pytest.approx(steps[0][0].loss, rel=1e-9), cut
        same(gradients, steps[0][1], cut)


@pytest.mark.parametrize('name', ONLINE)
def test_every_cut_of_steps_gives_the_same_gradients(name: str) -> None:
    settings = {'kernel': Kernel('flow_sde', 0.7), 'guidance': Guidance(2.5)}
    policy, old, other = (policy_of('flow', seed, **settings) for seed in (0, 0, 5))
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(1.01)
    examples = recorded(policy, old, other)
    steps = [step(policy_of('flow', **settings), ONLINE[name], examples, cut) for cut in CUTS]
    for cut, (result, gradients) in zip(CUTS, steps, strict=True):
        assert result.loss == pytest.approx(steps[0][0].loss, rel=1e-9), cut
        same(gradients, steps[0][1], cut)


def test_a_score_is_that_of_its_unit_alone() -> None:
    for process, settings in (('flow', {}), ('epsilon', {'noise': Noise(weighting='min_snr')})):
        policy = policy_of(process, **settings)
        examples = rows_of('dpo')
        beside = policy(policy.collate(examples)).values
        alone = [
            policy(policy.collate([replace(item, responses=[own])])).values
            for item in examples
            for own in item.responses
        ]
        torch.testing.assert_close(beside, torch.cat(alone), rtol=1e-12, atol=1e-12)
        assert len(beside.unique()) == len(beside) == 16


def test_draws_are_of_the_row_and_of_nothing_else() -> None:
    collate = DenoisingCollator(ToySpec(), seed=3)

    def noise_in(inputs: DenoisingInputs) -> Tensor:
        """Of a flow `x + (1 - σ) v`."""
        return inputs.sample + (1 - inputs.level.double()).view(-1, 1, 1, 1) * inputs.target

    def sampled(example: Example, by: DenoisingCollator = collate, beside: Sequence[Example] = ()) -> list[Tensor]:
        inputs, units = by([*beside, example]).inputs, example.responses[0].units
        return [inputs.level[-units:], noise_in(inputs)[-units:]]

    first, second = row(0, draws=2), row(1, draws=2)
    level, noise = sampled(first)
    assert len(level.unique()) == 2 and not torch.allclose(noise[0], noise[1])
    # Chosen and rejected, beside others, unmatched, and again.
    inputs = collate([first]).inputs
    assert torch.equal(inputs.level[:2], inputs.level[2:])
    torch.testing.assert_close(noise_in(inputs)[:2], noise_in(inputs)[2:])
    assert not torch.allclose(inputs.sample[:2], inputs.sample[2:])
    for other in (sampled(first, beside=[second]), sampled(replace(first, responses=[clean(99, 2)]))):
        assert torch.equal(other[0], level)
        torch.testing.assert_close(other[1], noise)
    unmatched = collate([replace(first, unmatched=clean(98, 2))]).unmatched.inputs
    assert torch.equal(unmatched.level, level)
    # Wherever its file lies.
    here, there = (replace(first, source=f'{folder}/rows.jsonl:1') for folder in ('/data', 'other/place'))
    assert torch.equal(sampled(here)[0], sampled(there)[0])
    for changed in (second, replace(first, epoch=1), replace(first, source_index=1)):
        assert not torch.equal(sampled(changed)[0], level)
    assert not torch.equal(sampled(first, DenoisingCollator(ToySpec(), seed=4))[0], level)
    # More draws begin with the same ones.
    assert torch.equal(sampled(row(0, draws=3))[0][:2], level)


def test_a_collator_goes_to_workers() -> None:
    collate = DenoisingCollator(ToySpec(), Noise(noise_offset=0.1), kernel=Kernel(), guidance=Guidance(4.0))
    again = pickle.loads(pickle.dumps(collate))
    assert torch.equal(again(rows_of('dpo')).inputs.sample, collate(rows_of('dpo')).inputs.sample)


def test_units_batches_and_costs() -> None:
    collate, examples = DenoisingCollator(ToySpec()), rows_of('kto')
    batch = collate(examples)
    assert batch.segments.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 7]
    torch.testing.assert_close(batch.weights[:4], torch.tensor([1.0, 1.0, 0.5, 0.5]))
    assert batch.num_responses == 8 and batch.examples_of_responses.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Patches of 2 × 2 positions are tokens.
    elements, tokens = math.prod(SHAPE), math.prod(SHAPE[1:]) // 4
    assert batch.stats == {'examples': 4, 'units': 16, 'latents': 16 * elements}
    assert collate.cost(examples[1]) == Cost(4, tokens, 5.0 * tokens, 1, tokens, kind=(SHAPE, SHAPE))
    assert collate.size(examples) == 16 * tokens and collate.size([]) == 0
    several = replace(collate, several=True, work=(3.0, 0.5))
    assert several.cost(examples[1]) == Cost(4, tokens, 5 * (3.0 * tokens + 0.5 * tokens**2), 1, tokens)
    wide = replace(examples[1], responses=[clean(1, 2, (3, 4, 8))], unmatched=None)
    narrow = replace(examples[1], unmatched=None)
    assert several.size([wide, narrow]) == (2 + 4) * 8, 'all are as long as the longest'
    assert collate.size([wide, narrow]) > 10**9, 'samples of two sizes fit into no budget'
    guided = policy_of(kernel=Kernel(), guidance=Guidance(3.0))
    steps = generated(guided)[0]
    assert guided.collate.cost(steps) == Cost(6, tokens, 12.0 * tokens, kind=(SHAPE,))
    assert batch.inputs.conditions['letters'].shape[0] == 4, 'conditions stand once for each prompt'


def test_an_empty_micro_batch_runs_the_denoiser_and_trains_nothing() -> None:
    policy = policy_of()
    batch = policy.collate([])
    scored = policy(batch, prediction=True, entropy=True)
    assert len(scored.values) == len(batch.weights) == batch.stats['units'] == 0 and policy.model.calls == [1]
    scored.values.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in policy.parameters())
    assert batch.num_responses == 0 and batch.sources == []


def test_what_cannot_be_one_batch_is_refused() -> None:
    collate = DenoisingCollator(ToySpec(), kernel=Kernel())
    other = Example(prompt('b'), [clean(1, shape=(3, 2, 2))], 'small row')
    with pytest.raises(SampleError, match=r'3×4×2 \(row 0\), 3×2×2 \(small row\)'):
        collate([row(0), other])
    policy = policy_of(kernel=Kernel())
    with pytest.raises(ModelError, match='either clean samples or steps'):
        collate([row(0), generated(policy)[1]])
    with pytest.raises(ModelError, match='there is none'):
        DenoisingCollator(ToySpec())(generated(policy))
    last = replace(row(0), responses=[rollout(policy, row(0), (5,), 1)])
    cps = DenoisingCollator(ToySpec(), kernel=Kernel('cps', 0.8))
    with pytest.raises(TrainingError, match='leave out the last step'):
        cps([last])
    with pytest.raises(ModelError, match='no unconditional prompt'):
        replace(collate, guidance=Guidance(2.0))([replace(item, unconditional=None) for item in generated(policy)])
    with pytest.raises(SettingsError, match='is a flow'):
        DenoisingCollator(ToySpec(), Noise(weighting='min_snr'))
    with pytest.raises(SettingsError, match='choose ddim'):
        DenoisingCollator(ToySpec('epsilon'), kernel=Kernel())


@pytest.mark.parametrize(
    ('process', 'kernel'),
    [('flow', Kernel('flow_sde', 0.7)), ('flow', Kernel('cps', 0.8)), ('epsilon', Kernel('ddim', 1.0))],
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_what_was_sampled_has_a_ratio_of_one_until_the_first_update(
    process: str, kernel: Kernel, dtype: torch.dtype
) -> None:
    policy = policy_of(process, dtype=dtype, kernel=kernel, guidance=Guidance(3.0))
    examples = recorded(policy, policy, policy_of(process, 5, dtype, kernel=kernel, guidance=Guidance(3.0)))
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.05))
    batch = policy.collate(examples)
    before, after = (engine.train_step([batch], ONLINE['grpo']).terms for _ in range(2))
    assert before['ratio'] == pytest.approx(1.0, abs=1e-7) and before['approx_kl'] == pytest.approx(0.0, abs=1e-9)
    assert abs(after['ratio'] - 1.0) > 1e-6 and before['kl'] > 0
    scored = policy(batch)
    assert scored.values.dtype == dtype and (scored.drift > 0).all() and (scored.divergence > 0).all()


def test_the_rollout_and_the_trainer_have_the_same_density() -> None:
    """The next sample is where the mean says, and noise: as many standard deviations off as what was sampled."""
    policy = policy_of(kernel=Kernel('flow_sde', 0.7), guidance=Guidance(3.0, rescale=True))
    examples = generated(policy)
    scored = policy(policy.collate(examples), entropy=True)
    # What is left of both is half of one less the mean of n², of 24 elements.
    gaps = (scored.entropy + scored.values).abs()
    assert len(gaps) == 16 and 0.03 < gaps.mean() < 0.25 and gaps.max() < 0.6
    assert scored.divergence is None and scored.drift is None and scored.prediction is None


def test_the_kl_of_a_step_has_the_form_that_is_asked_for() -> None:
    found = {}
    for form in ('exact', 'flow_grpo'):
        policy, other = (policy_of('flow', seed, kernel=Kernel(divergence=form)) for seed in (0, 5))
        batch = policy.collate(recorded(policy, policy, other))
        found[form] = policy(batch).divergence
    torch.testing.assert_close(found['flow_grpo'], found['exact'] / 6, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(batch.per_unit['step_length'], torch.full((16,), 1 / 6), rtol=1e-5, atol=1e-7)


def test_guidance_leads_away_from_a_branch_without_gradient() -> None:
    spec, policy = ToySpec(), policy_of()
    example = replace(row(0), unconditional=prompt(''))
    sample, level = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor([0.3, 0.8])
    given, without = (
        {name: value.expand(2, *value.shape) for name, value in own.media.items()}
        for own in (example.prompt, example.unconditional)
    )

    def predicted(unconditional: Any, guidance: Guidance) -> Tensor:
        return predict(spec, policy.model, sample, level, given, unconditional, guidance, torch.float64)

    plain, weak = (spec.predict(policy.model, sample, level, own, 1.0) for own in (given, without))
    led = predicted(without, Guidance(4.0))
    torch.testing.assert_close(led, weak + 4.0 * (plain - weak))
    torch.testing.assert_close(predicted(None, Guidance(4.0)), plain)
    parameters = list(policy.model.parameters())
    of_led = torch.autograd.grad(led.sum(), parameters, retain_graph=True)
    # Were both branches trained it would be 4 ∇c - 3 ∇u.
    for found, wanted in zip(of_led, torch.autograd.grad(plain.sum(), parameters, retain_graph=True), strict=True):
        torch.testing.assert_close(found, 4.0 * wanted)
    held = predicted(without, Guidance(4.0, rescale=True))
    patches = [own.unfold(2, 2, 2).unfold(3, 2, 2).square().sum((1, 4, 5)) for own in (held, plain, led)]
    torch.testing.assert_close(patches[0], patches[1])
    assert not torch.allclose(patches[2], patches[1])
    positions = rescaled(led, plain, 1)
    torch.testing.assert_close(positions.norm(dim=1), plain.norm(dim=1))
    told = predicted(None, Guidance(embedded=3.5))
    torch.testing.assert_close(told, spec.predict(policy.model, sample, level, given, 3.5))
    assert not torch.allclose(told, plain)


def test_ranks_call_a_guided_denoiser_equally_often() -> None:
    policy = policy_of(kernel=Kernel(), guidance=Guidance(3.0))
    calls = []
    for batch in (policy.collate(generated(policy)), policy.collate([]), policy.collate([row(0)])):
        policy.model.calls.clear()
        policy(batch)
        calls.append(list(policy.model.calls))
    assert calls == [[16, 16], [1, 1], [1, 2]]


def test_what_it_has_not_is_refused() -> None:
    policy = policy_of()
    for asked in ('bootstrap', 'routing'):
        with pytest.raises(ModelError, match='no returns'):
            policy(policy.collate([row(0)]), **{asked: True})
    policy.set_temperature(1.0)
    with pytest.raises(ModelError, match='noise level'):
        policy.set_temperature(0.7)
    assert policy(policy.collate([row(0)]), entropy=True).entropy is None


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_a_denoiser_that_is_right_passes_the_check(dtype: torch.dtype) -> None:
    policy = policy_of(dtype=dtype)
    policy.check(policy, CPU)
    frozen = policy.requires_grad_(False)
    frozen.check(frozen, CPU)


def test_the_check_finds_what_is_wrong() -> None:
    def broken(**changed: Any) -> DenoisingPolicy:
        policy = policy_of()
        for name, value in changed.items():
            setattr(policy.model, name, value)
        return policy

    original = policy_of().model.forward
    cases = {
        'stand alone': lambda sample, level, **more: original(sample - sample.mean(0), level, **more),
        'computed again': lambda sample, level, **more: original(sample + torch.rand(1), level, **more),
        'not finite': lambda sample, level, **more: original(sample, level, **more) / 0,
        'no gradient': lambda sample, level, **more: original(sample, level, **more).detach(),
    }
    for words, forward in cases.items():
        policy = broken(forward=forward)
        with pytest.raises(ModelError, match=words):
            policy.check(policy, CPU)


def test_the_contrast_is_with_what_was_predicted_before() -> None:
    policy, old, reference = policy_of(contrast=0.4), policy_of(seed=1), policy_of(seed=5)
    examples = rows_of('dpo')
    for name, by in (('old', old), ('reference', reference)):
        record(name, infer(by, prediction=True), policy.collate, [examples[:2], examples[2:]], CPU)
    batch = policy.collate(examples)
    scored = policy(batch, prediction=True)
    before, at_start = (infer(by, prediction=True)(batch) for by in (old, reference))
    wanted = contrast(scored.prediction, before.prediction, batch.inputs.target, batch.inputs.level, 0.4)
    torch.testing.assert_close(scored.contrast, torch.stack(wanted, 1))
    apart = (scored.prediction - at_start.prediction).square().mean((1, 2, 3))
    torch.testing.assert_close(scored.divergence, apart)
    assert scored.contrast.requires_grad and scored.contrast.shape == (16, 2)
    torch.testing.assert_close(before.values, batch.per_unit['old'].double(), rtol=1e-6, atol=1e-6)
    assert policy_of()(policy_of().collate(rows_of('sft'))).contrast is None
    with pytest.raises(SettingsError, match='trains flows'):
        DenoisingCollator(ToySpec('epsilon'), contrast=1.0)
