"""Families with images, videos and audio: labels, prompts, positions, and the model's own logits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio
from align_anything.models.any_model import AnyModel
from align_anything.models.structure import audio_window, skeleton
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.selfcheck import check_head, check_layout, probe_examples
from tests.harness.pairwise import in_tiers
from tests.models.mixed import (
    AUDIO,
    MEDIA,
    ONE_PROMPT,
    PADDED_ONLY,
    RATE,
    VIDEO,
    clip,
    conversation_of,
    first_turn,
    logits_of,
    media,
    ordinary_tokens,
    plain_inputs,
    policy_of,
    scorer,
    sound,
    whole,
)
from tests.models.samples import WIDER, answers, assistant, ids_of, labelled, learnt, load, single, user

Tiny = Callable[[str], Path]
LAYOUTS = [
    (family, layout)
    for family in MEDIA
    for layout in (('padded',) if family in PADDED_ONLY else ('padded', 'packed', 'shared_prefix'))
]
# The template writes no token that ends an answer (Janus's none that ends the last), so one is put in; PaliGemma has
# one answer only.
WITHOUT_END = ('llava', 'llava_next', 'llava_next_video', 'janus', *ONE_PROMPT)
MROPE = [family for family in MEDIA if family.startswith('qwen') and family != 'qwen2_audio']


@pytest.mark.parametrize('family', MEDIA)
def test_a_family_says_what_it_takes(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    assert spec.reads == set(MEDIA[family])
    assert spec.audio_rate == (RATE if family in AUDIO else None)
    assert spec.layouts == tuple(layout for name, layout in LAYOUTS if name == family)


@pytest.mark.parametrize('family', MEDIA)
def test_labels_are_the_answers_wherever_media_stand(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = conversation_of(family)
    example = spec.encode(conversation, 'last' if family in ONE_PROMPT else 'all_assistant')
    assert labelled(spec, example) == learnt(family, answers(conversation)[-1 if family in ONE_PROMPT else 0 :])
    assert not example.prompt.weights.any()
    both = whole(spec, example)
    is_media = torch.isin(both.ids, torch.tensor(sorted(spec.media_token_ids)))
    assert is_media.any() and not both.weights[is_media].any()
    # Two of each kind in the first turn, one in the second.
    assert both.media_counts == dict.fromkeys(MEDIA[family], 2 if family in ONE_PROMPT else 3)


@pytest.mark.parametrize('family', MEDIA)
def test_prompts_are_transformers_own(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = conversation_of(family)
    expected = plain_inputs(spec, conversation[:-1])['input_ids'][0]
    assert spec.encode_prompt(conversation[:-1]).ids.tolist() == expected.tolist()
    example = spec.encode(conversation, 'last')
    assert example.prompt.ids.tolist() == expected.tolist()
    if family not in WITHOUT_END:
        # Cut into turns, the tokens are the same.
        together = ids_of(spec.encode(conversation))
        assert together[: len(expected)].tolist() == expected.tolist()
        assert together.tolist() == ids_of(example).tolist()


@pytest.mark.parametrize('family', MEDIA)
def test_a_pickled_spec_encodes_the_same(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = conversation_of(family)
    copy = pickle.loads(pickle.dumps(spec))
    before, after = (whole(each, each.encode(conversation, 'last')) for each in (spec, copy))
    assert torch.equal(before.ids, after.ids) and before.media.keys() == after.media.keys()
    assert all(torch.equal(tensor, after.media[name]) for name, tensor in before.media.items())


@pytest.mark.parametrize('family', MEDIA)
def test_logits_are_those_of_the_plain_model(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, 'padded')
    # transformers' processor of SmolVLM loses the images of a conversation with videos.
    conversation = first_turn(['video']) if family == 'smolvlm' else conversation_of(family)
    inputs = plain_inputs(spec, conversation[:-1])
    inputs.pop('labels', None)
    with torch.no_grad():
        expected = AnyModel.from_pretrained(tiny(family)).eval()(**inputs, use_cache=False).logits[0]
        # The text-only neighbour is the shorter row.
        examples = [spec.encode(conversation, 'last'), spec.encode(single(), 'last')]
        batch = TokenCollator(spec, 'padded')(examples)
        found = policy(batch, logits=True)[0, : len(expected)]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        check_head(scorer(policy), logits_of(policy), batch, torch.float32, policy.allowed)
        # Mllama's later images are hidden from the first answer, which one prompt with both does not do. The last
        # frames of audio in Qwen3-Omni and Gemma 3n see the padding up to the longest clip of the same call.
        if family not in (*WITHOUT_END, 'mllama', 'qwen3_omni_moe_thinker', 'gemma3n'):
            batch = TokenCollator(spec, 'padded')([spec.encode(conversation)])
            found = policy(batch, logits=True)[0, : len(expected)]
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('family', MROPE)
def test_positions_are_those_of_the_model(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = conversation_of(family)
    both = whole(spec, spec.encode(conversation))
    found = spec.positions(both.ids, both.media, both.token_tensors)
    model = skeleton(spec.config)
    if 'omni' in family:
        lengths = both.media['feature_attention_mask'].sum(-1)
        expected = model.get_rope_index(
            both.ids[None],
            image_grid_thw=both.media['image_grid_thw'],
            video_grid_thw=both.media['video_grid_thw'],
            attention_mask=torch.ones_like(both.ids[None]),
            audio_seqlens=lengths,
            second_per_grids=both.media['video_second_per_grid'],
        )[0]
    else:
        grids = {name: both.media[name].clone() for name in ('image_grid_thw', 'video_grid_thw')}
        if 'second_per_grid_ts' in both.media:
            grids['second_per_grid_ts'] = both.media['second_per_grid_ts']
        types = both.token_tensors['mm_token_type_ids']
        expected = model.model.get_rope_index(both.ids[None], types[None], **grids)[0]
    assert torch.equal(found[0].long(), torch.arange(len(both)))
    torch.testing.assert_close(found[1:].float(), expected[:, 0].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('family', MEDIA)
def test_a_dummy_of_each_kind_is_legal_and_harmless(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, 'padded')
    text, other = spec.encode(single()), spec.encode(first_turn(MEDIA[family]))
    with torch.no_grad():
        for example in (text, other):
            alone = policy(TokenCollator(spec, 'padded')([example])).values
            batch = TokenCollator(spec, 'padded', dummy_kinds=tuple(MEDIA[family]))([example])
            assert all(batch.stats[f'{kind}s'] == 1 for kind in MEDIA[family])
            torch.testing.assert_close(policy(batch).values, alone, atol=2e-5, rtol=1e-4)
    for kind in MEDIA[family]:
        dummy = spec.dummy(kind)
        assert dummy.media_counts == {kind: 1} and not dummy.weights.any() and dummy.media


# Beside a layout that has the others' properties too, those are in the invariants of families and in the second tier.
@pytest.mark.parametrize(('family', 'layout'), in_tiers(LAYOUTS, [*dict(LAYOUTS).items()]))
def test_every_layout_scores_each_sample_as_if_alone(family: str, layout: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, layout)
    kinds = MEDIA[family]
    collator = TokenCollator(spec, layout, dummy_kinds=tuple(kinds))
    check_layout(scorer(policy), collator, ordinary_tokens(spec), kinds, torch.float32)
    padded = replace(collator, layout='padded')
    probe = padded(probe_examples(padded, ordinary_tokens(spec), kinds))
    check_head(scorer(policy), logits_of(policy), probe, torch.float32, policy.allowed)
    # Media of unequal sizes, one kind more in each row, text alone among them; the first prompt has two answers.
    pair = spec.encode(first_turn(kinds, 0, 'Noise.'))
    pair.responses += spec.encode(first_turn(kinds, 0, 'A red thing, it seems.')).responses
    rows = [pair, spec.encode(single())]
    rows += [spec.encode(first_turn(kinds[: number + 1], number + 1)) for number in range(min(len(kinds), 2))]
    rows.append(spec.encode(conversation_of(family), 'last'))
    plain = TokenCollator(spec, 'padded')
    with torch.no_grad():
        alone = torch.cat(
            [policy(plain([replace(row, responses=[answer])])).values for row in rows for answer in row.responses]
        )
        torch.testing.assert_close(policy(collator(rows)).values, alone, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize('family', VIDEO)
def test_videos_of_unequal_length_share_a_turn_and_a_batch(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    clips = [clip(2, 40, 40, seed=1), clip(6, 32, 64, seed=2, every=0.25)]
    example = spec.encode([user(*clips, media('image', 0), 'Which?'), assistant('The first.')])
    assert example.prompt.media_counts == {'video': 2, 'image': 1}
    policy = policy_of(tiny(family), spec, 'padded')
    with torch.no_grad():
        alone = policy(TokenCollator(spec, 'padded')([example])).values
        other = spec.encode([user(clips[1], 'What?'), assistant('That.')])
        together = policy(TokenCollator(spec, 'padded')([other, example])).values
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(together[-len(alone) :], alone, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ('family', 'kind'), [(family, kind) for family in dict.fromkeys(WIDER + VIDEO) for kind in MEDIA[family]]
)
def test_each_kind_of_media_matters(family: str, kind: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, 'padded')
    items = {
        'image': [_noise(1), _noise(2)],
        # The same frames in reverse: their order matters.
        'video': [clip(4, 56, 56), _reversed(clip(4, 56, 56))],
        'audio': [sound(0.5, pitch=300), sound(0.5, pitch=900)],
    }[kind]
    collate = TokenCollator(spec, 'padded')
    with torch.no_grad():
        scores = [
            policy(collate([spec.encode([user(item, 'What?'), assistant('This or that.')])])).values for item in items
        ]
    assert float((scores[0] - scores[1]).abs().max()) > 1e-5


def _noise(seed: int) -> dict:
    return {'type': 'image', 'image': Image.fromarray(clip(1, 56, 56, seed=seed)['video'].frames[0])}


def _reversed(part: dict) -> dict:
    video = part['video']
    return {'type': 'video', 'video': replace(video, frames=np.ascontiguousarray(video.frames[::-1]))}


@pytest.mark.parametrize('family', AUDIO)
def test_audio_of_another_rate_or_none_is_one_bad_sample(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    with pytest.raises(SampleError, match='8000 samples a second, this model takes 16000'):
        spec.encode([user(sound(0.5, rate=8000), 'What?'), assistant('Hm.')])
    empty = {'type': 'audio', 'audio': Audio(np.zeros(0, np.float32), RATE)}
    with pytest.raises(SampleError, match='the audio is empty'):
        spec.encode([user(empty, 'What?'), assistant('Hm.')])


def test_an_answer_of_mllama_does_not_see_an_image_that_comes_after_it(tiny: Tiny) -> None:
    spec = load(tiny('mllama'))
    policy = policy_of(tiny('mllama'), spec, 'padded')
    conversation = [*single(), user(media('image', 0), 'And this?'), assistant('Red.')]
    other = [*single(), user(media('image', 1), 'And this?'), assistant('Red.')]
    collator = TokenCollator(spec, 'padded')
    with torch.no_grad():
        scores = [policy(collator([spec.encode(each)])).values for each in (conversation, other, single())]
    first = len(scores[2])
    torch.testing.assert_close(scores[0][:first], scores[2], atol=2e-5, rtol=1e-4)
    assert float((scores[0][first:] - scores[1][first:]).abs().max()) > 1e-5


@pytest.mark.parametrize('family', ['qwen2_audio', 'qwen2_5_omni_thinker'])
def test_audio_that_the_processor_would_truncate_is_refused_past_a_rest_that_is_none(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    window = audio_window(spec.processor) / RATE
    whole, longer = (
        spec.encode([user(sound(seconds), 'What is it?'), assistant('A tone.')]) for seconds in (window, window + 0.05)
    )
    assert torch.equal(longer.prompt.ids, whole.prompt.ids)
    assert all(torch.equal(longer.prompt.media[name], tensor) for name, tensor in whole.prompt.media.items())
    with pytest.raises(SampleError, match='hears .* at once.*max_audio_seconds'):
        spec.encode([user(sound(window + 0.2), 'What is it?'), assistant('A tone.')])
