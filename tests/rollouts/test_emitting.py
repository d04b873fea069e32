"""Responses with media in them: their scores are those of the policy, their media those of the codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import TrainingError
from align_anything.core.types import Audio, CodedMedia, Example
from align_anything.models.codes import CODES
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.rollouts.base import Response, Sampling, restriction_of, sampled
from align_anything.rollouts.decoded import DecodedRollouts
from align_anything.rollouts.experience import complete
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.probe import MEDIA_PROBE_TOKENS, PROBE_TOKENS, ProbedRollouts
from tests.harness.once import once
from tests.models.mixed import policy_of
from tests.models.samples import single, user
from tests.rollouts.emitting import SIDE, codecs_of, emitting, load_emitting

Tiny = Callable[..., Path]
PICTURE = Emission({'image': None}, 'image')
BOTH = Emission({'image': None, 'audio': None})
# Opening, rows with their ends, closing, end of the turn.
PICTURE_TOKENS = 1 + SIDE * (SIDE + 1) + 1 + 1


@pytest.fixture(scope='module')
def folder(tiny: Tiny, shared_cache: Path) -> Path:
    return once(shared_cache, 'emitting-llama', lambda out: emitting(tiny('llama'), out))


def prompts(spec: FamilySpec) -> list[Example]:
    asked = [[user('Draw a two.')], [*single(), user('And now a picture of three, and say it aloud, please.')]]
    return [Example(spec.encode_prompt(prompt), [], source=str(number)) for number, prompt in enumerate(asked)]


def opener(model: torch.nn.Module, spec: FamilySpec) -> None:
    """Makes a model open media often: the logits of what opens them, and what ends text, are raised."""
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[[own.opening[0] for own in spec.codes.kinds.values()]] = 4.0
    head.bias.data[list(spec.stop_token_ids)] = 2.0


def joined(found: list[list[Response]], name: str = 'rollout') -> torch.Tensor:
    return torch.cat([response.per_unit[name] for responses in found for response in responses])


@pytest.mark.parametrize('restricted', [True, False])
@pytest.mark.parametrize('emit', [PICTURE, BOTH, None])
@pytest.mark.parametrize('how', [{}, {'temperature': 0.7, 'top_p': 0.9, 'top_k': 50, 'emit_top_k': {'image': 3}}])
def test_first_ratio_is_one(restricted: bool, emit: Emission | None, how: dict[str, Any], folder: Path) -> None:
    """For pictures, text and both of them in one response; forced tokens are no units."""
    spec = load_emitting(folder, restricted)
    policy = policy_of(folder, spec, 'padded').eval()
    opener(policy.model, spec)
    policy = type(policy)(policy.model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    how = {name: value for name, value in how.items() if emit is not None or name != 'emit_top_k'}
    sampling = Sampling(responses=4, max_new_tokens=60, emit=emit, **how)
    examples = prompts(spec)
    found = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=3).generate(examples, sampling)
    policy.set_temperature(sampling.temperature)
    with torch.no_grad():
        scores = policy(TokenCollator(spec, 'padded')(complete(examples, found))).values
    torch.testing.assert_close(joined(found), scores, atol=2e-5, rtol=1e-4)
    responses = sum(found, [])
    kinds = [part['type'] for response in responses for part in response.parts]
    if emit is PICTURE:
        assert kinds == ['image'] * 8
        assert all(len(response) == PICTURE_TOKENS and response.units == SIDE**2 for response in responses)
        assert all(response.finished for response in responses)
    else:
        assert ({'image', 'audio'} <= {*kinds}) == (emit is BOTH) and 'text' in kinds
        assert any((response.weights == 0).any() for response in responses) == (emit is BOTH)
        assert emit is not None or not any(spec.codes.is_code(response.ids).any() for response in responses)


def test_each_kind_has_a_temperature(folder: Path) -> None:
    spec = load_emitting(folder)
    engine = HFRollouts(policy_of(folder, spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)
    sampling = Sampling(responses=3, max_new_tokens=40, emit=PICTURE)

    def pictures(**how: Any) -> set[tuple[int, ...]]:
        found = engine.generate(prompts(spec)[:1], replace(sampling, **how))
        return {tuple(response.ids.tolist()) for response in found[0]}

    assert len(pictures()) == 3 == len(pictures(temperature=0.0, emit_temperature={'image': 1.0}))
    assert pictures(temperature=0.0) == pictures(emit_temperature={'image': 0.0})
    assert pictures(emit_top_k={'image': 1}) == pictures(temperature=0.0)
    assert pictures(top_k=1, top_p=0.01) == pictures()
    # Of text, pictures, and both books of sounds.
    assert [own.temperature for own in sampling.how(spec.codes)] == [1.0] * 4
    warm = replace(sampling, emit_temperature={'audio': 2.0})
    assert [own.temperature for own in warm.how(spec.codes)] == [1.0, 1.0, 2.0, 2.0]


def test_a_medium_that_is_cut_is_not_finished(folder: Path) -> None:
    spec = load_emitting(folder)
    engine = HFRollouts(policy_of(folder, spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)
    for tokens in (PICTURE_TOKENS - 1, 10):
        ((response,), _) = engine.generate(prompts(spec), Sampling(max_new_tokens=tokens, emit=PICTURE))
        assert not response.finished and len(response) == tokens
        # Without its end only, the picture is whole.
        assert [part['type'] for part in response.parts] == ['image' if tokens > 10 else 'text']


def test_stop_strings_end_text_and_no_media(folder: Path) -> None:
    """Whatever the tokens of codes are called; behind them a response goes on."""
    spec = load_emitting(folder)
    model = policy_of(folder, spec, 'padded').model
    opener(model, spec)
    engine = HFRollouts(model, spec, dtype=torch.float32, batch_size=8)
    sampling = Sampling(responses=8, max_new_tokens=60, emit=BOTH)
    plain = engine.generate(prompts(spec), sampling)
    assert any(part['type'] == 'image' for response in plain[0] for part in response.parts)

    def ids(found: list[list[Response]]) -> list[list[int]]:
        return [response.ids.tolist() for responses in found for response in responses]

    assert ids(engine.generate(prompts(spec), replace(sampling, stop=('<|image_0', '<|audio_1')))) == ids(plain)
    opening = spec.codes.kinds['image'].opening[0]
    stopped = ids(engine.generate(prompts(spec), replace(sampling, stop=('<|image_begin|>',))))
    # Tokens of other rows are sampled otherwise once one has ended.
    ended = [own for own in stopped if opening in own]
    assert ended and all(own.index(opening) == len(own) - 1 for own in ended)


def test_a_probe_goes_beyond_the_opening_of_media(folder: Path) -> None:
    """What opens a medium is forced, so that it tells nothing of the weights."""
    spec, asked = load_emitting(folder), []
    policy = policy_of(folder, spec, 'padded').eval()

    class Asked(HFRollouts):
        def generate(self, examples: Any, sampling: Sampling, tell: Any = None) -> list[list[Response]]:
            asked.append(sampling.max_new_tokens)
            return super().generate(examples, sampling, tell)

    engine = Asked(policy.model, spec, dtype=torch.float32, batch_size=8)
    probed = ProbedRollouts(
        engine, torch.no_grad()(policy.forward), TokenCollator(spec, 'padded'), torch.device('cpu'), 1e-3
    )
    for version, emit in enumerate((PICTURE, BOTH)):
        probed.sync(version)
        probed.generate(prompts(spec), Sampling(max_new_tokens=40, emit=emit))
    assert asked == [MEDIA_PROBE_TOKENS, 40, PROBE_TOKENS, 40]
    policy.set_temperature(2.0)
    probed.sync(2)
    with pytest.raises(TrainingError, match='does not generate with the weights in training'):
        probed.generate(prompts(spec), Sampling(max_new_tokens=40, emit=PICTURE))


def test_tokens_that_the_grammar_forbids_stop_the_run(folder: Path) -> None:
    spec = load_emitting(folder)
    sampling = Sampling(emit=PICTURE)
    with pytest.raises(TrainingError, match='does not keep to the grammar'):
        sampled(spec, [5, 6], [0.0, 0.0], 0, sampling, restriction_of(spec, sampling).grammar)


def test_media_are_decoded_once_and_keep_their_codes(folder: Path) -> None:
    spec = load_emitting(folder)
    model = policy_of(folder, spec, 'padded').model
    opener(model, spec)
    codecs = codecs_of(folder)
    inner = HFRollouts(model, spec, dtype=torch.float32, batch_size=8)
    engine = DecodedRollouts(inner, codecs)
    engine.sync(3)
    sampling = Sampling(responses=8, max_new_tokens=60, emit=BOTH)
    kinds = set()
    for bare, decoded in zip(
        inner.generate(prompts(spec), sampling), engine.generate(prompts(spec), sampling), strict=True
    ):
        for before, after in zip(bare, decoded, strict=True):
            assert after.version == 3 and after.ids.tolist() == before.ids.tolist()
            for part, own in zip(before.parts, after.parts, strict=True):
                kind = part['type']
                kinds.add(kind)
                if kind == 'text':
                    assert own == part
                    continue
                assert own[CODES].codes.equal(part[kind].codes) and type(part[kind]) is CodedMedia
                assert own[CODES].codec == codecs[kind].rules.fingerprint
                expected = codecs[kind].decode(part[kind].codes)
                assert (
                    own[kind].samples.tolist() == expected.samples.tolist()
                    if kind == 'audio'
                    else own[kind] == expected
                )
                assert kind != 'audio' or type(own[kind]) is Audio
                # What reads the response later takes the codes that were sampled.
                assert spec.codes.coded(own).codes.equal(part[kind].codes)
    assert kinds == {'text', 'image', 'audio'}


def test_media_that_no_codec_makes_stay_codes(folder: Path) -> None:
    spec = load_emitting(folder)
    codec = codecs_of(folder)['image']
    codec.rules = replace(codec.rules, decodes=False)
    inner = HFRollouts(policy_of(folder, spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)
    for codecs in ({}, {'image': codec}):
        (((response,), _)) = DecodedRollouts(inner, codecs).generate(
            prompts(spec), Sampling(max_new_tokens=40, emit=PICTURE)
        )
        ((part,)) = response.parts
        assert type(part['image']) is CodedMedia and CODES not in part


@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_loss_weights_of_kinds_hold_for_responses(weight: float, folder: Path) -> None:
    spec = load_emitting(folder)
    model = policy_of(folder, spec, 'padded').model
    opener(model, spec)
    sampling = Sampling(responses=4, max_new_tokens=60, emit=BOTH)
    plain = HFRollouts(model, spec, dtype=torch.float32, batch_size=8).generate(prompts(spec), sampling)
    spec.codes = replace(spec.codes, weights={'image': weight})
    found = HFRollouts(model, spec, dtype=torch.float32, batch_size=8).generate(prompts(spec), sampling)
    image = spec.codes.kinds['image']
    drawn = [*range(image.first[0], image.first[0] + image.books[0]), image.opening[0]]
    changed = 0
    for one, other in zip(sum(found, []), sum(plain, []), strict=True):
        assert torch.equal(one.ids, other.ids)
        picture = torch.isin(one.ids, torch.tensor(drawn))
        assert torch.equal(one.weights, other.weights.where(~picture, other.weights * weight))
        kept = one.weights[other.weights > 0] > 0
        assert torch.equal(one.per_unit['rollout'], other.per_unit['rollout'][kept])
        changed += int((one.weights != other.weights).sum())
    assert changed
