"""Media in responses that vLLM generates: by the same grammar, with the log-probabilities of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_anything.core.errors import SettingsError
from align_anything.policies.token.collator import TokenCollator
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.experience import complete
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.probe import ProbedRollouts
from align_anything.rollouts.vllm import check_vllm_emission
from align_anything.rollouts.vllm_engine import Request, RequestError
from tests.harness.once import once
from tests.harness.ranks import run_ranks
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.models.mixed import policy_of
from tests.rollouts.emitting import SIDE, emitting, load_emitting
from tests.rollouts.test_emitting import BOTH, PICTURE, PICTURE_TOKENS, joined, prompts
from tests.rollouts.test_vllm import started

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def folder(tiny: Tiny, shared_cache: Path) -> Path:
    """A model that opens media often: what opens them is embedded as what it writes most."""

    def make(out: Path) -> None:
        emitting(tiny('llama'), out)
        state = load_file(out / 'model.safetensors')
        for own in load_emitting(out).codes.kinds.values():
            state['lm_head.weight'][own.opening[0]] *= 6
        save_file(state, out / 'model.safetensors', {'format': 'pt'})

    return once(shared_cache, 'emitting-often', make)


@pytest.fixture(scope='module')
def vllm() -> None:
    import_vllm()


@pytest.mark.extended
@pytest.mark.usefixtures('vllm')
def test_media_are_sampled_as_the_policy_samples_them(folder: Path) -> None:
    run_ranks(samples_as_the_policy, 1, args=(folder,))


@pytest.mark.extended
@pytest.mark.usefixtures('vllm')
def test_servers_sample_media_as_the_policy_samples_them(folder: Path) -> None:
    with vllm_servers(1) as (urls, _):
        run_ranks(samples_as_the_policy, 1, args=(folder, urls))


def samples_as_the_policy(rank: int, folder: Path, servers: Sequence[str] = ()) -> None:
    spec = load_emitting(folder)
    policy = policy_of(folder, spec, 'padded').eval()
    engine = started(folder, spec, policy.model, servers, grammar=True)
    own = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=8)
    collate = TokenCollator(spec, 'padded')
    probed = ProbedRollouts(engine, torch.no_grad()(policy.forward), collate, torch.device('cpu'), 1e-3)
    probed.sync(0)
    examples = prompts(spec)
    kinds, openings = set(), 0
    for emit, how in (
        (PICTURE, {}),
        (BOTH, {'temperature': 0.7}),
        (BOTH, {'top_k': 40, 'top_p': 0.9, 'emit_top_k': {'image': 2}}),
        (None, {}),
    ):
        sampling = Sampling(responses=6, max_new_tokens=60, emit=emit, seed=1, **how)
        found = probed.generate(examples, sampling)
        policy.set_temperature(sampling.temperature)
        with torch.no_grad():
            expected = policy(collate(complete(examples, found))).values
        policy.set_temperature(1.0)
        torch.testing.assert_close(joined(found), expected, atol=1e-4, rtol=1e-4)
        responses = sum(found, [])
        kinds |= {part['type'] for response in responses for part in response.parts}
        openings += sum(bool((response.weights == 0).any()) for response in responses) if emit is BOTH else 0
        if emit is PICTURE:
            assert all(len(response) == PICTURE_TOKENS and response.units == SIDE**2 for response in responses)
            assert all(response.finished for response in responses)
        if emit is None:
            assert not any(spec.codes.is_code(response.ids).any() for response in responses)
        greedy = replace(sampling, temperature=0.0, responses=1)
        for mine, theirs in zip(own.generate(examples, greedy), engine.generate(examples, greedy), strict=True):
            assert mine[0].ids.tolist() == theirs[0].ids.tolist()
            assert mine[0].weights.tolist() == theirs[0].weights.tolist()
    assert kinds == {'text', 'image', 'audio'} and openings
    # Each kind by its own temperature: greedy pictures behind sampled text.
    found = engine.generate(
        examples, Sampling(responses=4, max_new_tokens=40, emit=PICTURE, emit_temperature={'image': 0})
    )
    assert all(len({tuple(response.ids.tolist()) for response in responses}) == 1 for responses in found)
    if not servers:
        prompt = {'prompt_token_ids': examples[0].prompt.ids.tolist()}
        for extra in (None, {'grammar': {'grammar': {}, 'how': []}}):
            with pytest.raises(RequestError, match='grammar'):
                engine.engine.generate([Request(prompt, {'max_tokens': 2, 'logprobs': 0, 'extra_args': extra})])


def test_what_vllm_cannot_sample_is_refused(folder: Path) -> None:
    spec = load_emitting(folder)
    check_vllm_emission(spec, Sampling(temperature=0.7, top_p=0.5))
    with pytest.raises(SettingsError, match='guidance_scale = 2: vLLM'):
        check_vllm_emission(spec, Sampling(guidance=2.0))
    with pytest.raises(SettingsError, match='repetition_penalty'):
        check_vllm_emission(spec, Sampling(repetition_penalty=1.1))
    spec.config.vocab_size = spec.codes.kinds['audio'].first[1]
    with pytest.raises(SettingsError, match='codes of audio in a vocabulary of their own'):
        check_vllm_emission(spec, Sampling())
    spec.codes = None
    check_vllm_emission(spec, Sampling(repetition_penalty=1.1, guidance=2.0))
