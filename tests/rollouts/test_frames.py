"""Rollouts of frames: all codes of each are kept, and its first one is scored as it was sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import SettingsError
from align_anything.core.types import CodedMedia, Example, Response
from align_anything.models.any_model import AnyModel
from align_anything.models.codes import CODES
from align_anything.models.family import FamilySpec
from align_anything.models.frames import FURTHER
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.rollouts.base import Sampling, check_emission
from align_anything.rollouts.decoded import DecodedRollouts
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.vllm import check_vllm_emission
from align_anything.testing.tiny.csm import BOOKS, ENTRIES
from tests.models.samples import user

Tiny = Callable[..., Path]
FREE = Emission({'audio': None}, 'audio')
LONGEST = 12


@pytest.fixture
def spec(tiny: Tiny) -> FamilySpec:
    found = load_spec(tiny('csm'))
    kinds = {'audio': replace(found.codes.kinds['audio'], longest=LONGEST)}
    found.codes = replace(found.codes, kinds=kinds, restricted=True, begins=True)
    return found


@pytest.fixture
def model(tiny: Tiny) -> Any:
    return AnyModel.from_pretrained(tiny('csm')).eval()


def sampled(spec: FamilySpec, model: Any, **how: Any) -> list[Example]:
    """Two prompts of unequal length with three responses each."""
    sampling = Sampling(**{'responses': 3, 'max_new_tokens': 20, 'emit': FREE, 'seed': 3, **how})
    check_emission(spec.codes, sampling)
    engine = DecodedRollouts(
        HFRollouts(model, spec, dtype=torch.float32, batch_size=4), {'audio': spec.codes.rules['audio'].open()}
    )
    prompts = [Example(spec.encode_prompt([user(words)]), []) for words in ('Sing!', 'Sing me a song of tones!')]
    found = engine.generate(prompts, sampling)
    return [replace(prompt, responses=list(own)) for prompt, own in zip(prompts, found, strict=True)]


def responses(examples: list[Example]) -> list[Response]:
    return [response for example in examples for response in example.responses]


@pytest.mark.parametrize(('temperature', 'top_k'), [(1.0, 0), (0.6, 0), (1.0, 4)])
@pytest.mark.parametrize('emission', [FREE, Emission({'audio': (5,)}, 'audio')])
def test_what_is_scored_is_what_was_sampled(
    temperature: float, top_k: int, emission: Emission, spec: FamilySpec, model: Any
) -> None:
    examples = sampled(spec, model, temperature=temperature, emit_top_k={'audio': top_k}, emit=emission)
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    policy.set_temperature(temperature)
    with torch.no_grad():
        scores = policy(policy.collate(examples)).values
    told = torch.cat([response.per_unit['rollout'] for response in responses(examples)])
    torch.testing.assert_close(scores, told, atol=1e-5, rtol=0)
    assert float(told.std()) > 0.01
    for response in responses(examples):
        assert response.finished and int(response.ids[-1]) == spec.config.audio_eos_token_id
        further = response.token_tensors[FURTHER]
        assert further.shape == (len(response), BOOKS - 1) and int(further.max()) < ENTRIES
        (part,) = response.parts
        frames = part[CODES].codes.shape[1]
        assert torch.equal(part[CODES].codes[1:], further[:frames].t()) and frames == len(response) - 1
        assert len(part['audio'].samples) == frames * spec.codes.rules['audio'].hop
        # The end is forced where the length is known, or reached.
        assert response.weights.tolist() == [1.0] * frames + [float(frames < 12 and emission is FREE)]
        if top_k == 0 and temperature == 1:
            assert len({tuple(codes) for codes in part[CODES].codes.t().tolist()}) > 1
        # It is never encoded again: the codes stay beside the sound.
        again = spec.encode([user('Sing!'), {'role': 'assistant', 'content': response.parts}]).responses[0]
        assert torch.equal(again.ids, response.ids) and torch.equal(again.token_tensors[FURTHER], further)


def test_a_frame_of_zeros_ends_a_sound_and_no_other_that_begins_so(spec: FamilySpec, model: Any) -> None:
    """Of equal logits the first one is taken: code 0 in each book of each frame, or in all but one."""
    first, end = spec.config.text_vocab_size, spec.config.audio_eos_token_id
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.depth_decoder.codebooks_head.weight.zero_()
    for response in responses(sampled(spec, model, temperature=0.0)):
        # A sound has a frame.
        assert response.ids.tolist() == [first, end] and response.finished and response.weights.tolist() == [1, 1]
        assert not response.token_tensors[FURTHER].any()
        assert response.per_unit['rollout'].exp().tolist() == pytest.approx([1 / ENTRIES] * 2)
    with torch.no_grad():
        # What the last book reads, times this, is the logit of code 1 there; it has some sign in each frame.
        model.depth_decoder.codebooks_head.weight[-1, 0, 1] = 1.0
        model.depth_decoder.codebooks_head.weight[-1, 0, 2] = -1.0
    for response in responses(sampled(spec, model, temperature=0.0)):
        assert response.ids.tolist() == [first] * 12 + [end] and response.weights.tolist() == [1.0] * 12 + [0.0]
        assert all(row[:-1] == [0] * (BOOKS - 2) and row[-1] in (1, 2) for row in further_of(response))


def further_of(response: Response) -> list[list[int]]:
    return response.token_tensors[FURTHER][:-1].tolist()


def test_a_sound_that_is_clipped_is_not_finished(spec: FamilySpec, model: Any) -> None:
    for response in responses(sampled(spec, model, max_new_tokens=6, emit=Emission({'audio': None}, 'audio'))):
        assert not response.finished and len(response) == 6
        assert response.token_tensors[FURTHER].shape == (6, BOOKS - 1)
        assert not any(type(part.get('audio')) is CodedMedia for part in response.parts)


def test_vllm_is_refused(spec: FamilySpec) -> None:
    with pytest.raises(SettingsError, match='vocabulary of their own, which vLLM does not sample from'):
        check_vllm_emission(spec, Sampling(emit=FREE))
