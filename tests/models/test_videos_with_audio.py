"""Videos with their audio tracks: tokens, positions, logits and generation as transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.core.types import Conversation, Example, Piece
from align_anything.models.any_model import transformers_class
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import video_metadata
from align_anything.models.rendering import media_of
from align_anything.models.structure import skeleton
from align_anything.policies.token.collator import TokenCollator
from tests.models.mixed import RATE, clip, media, policy_of, sound, whole
from tests.models.samples import assistant, labelled, learnt, load, user

Tiny = Callable[..., Path]
OMNI = ('qwen2_5_omni_thinker', 'qwen3_omni_moe_thinker')
HEARING = (*OMNI, 'gemma4')
LONGEST = 8


def heard(frames: int, seconds: float, *, size: tuple[int, int] = (40, 60), number: int = 0) -> dict[str, Any]:
    """A video of two frames a second, with a tone of so many seconds."""
    part = clip(frames, *size, seed=number)
    track = sound(seconds, pitch=300 + 200 * number)['audio']
    return {'type': 'video', 'video': replace(part['video'], audio=track)}


def omni(folder: Path) -> FamilySpec:
    """The spec of a tiny thinker whose processor takes longer audio clips than its usual two seconds."""
    spec = load(folder)
    extractor = spec.processor.feature_extractor
    extractor.n_samples, extractor.nb_max_frames = LONGEST * RATE, LONGEST * RATE // extractor.hop_length
    return spec


def plain_inputs(spec: FamilySpec, prompt: Conversation) -> dict[str, Tensor]:
    """What the plain processor makes of a prompt whose videos all have audio."""
    clips = [item for kind, item in media_of(prompt) if kind == 'video']
    sounds = [item.audio if kind == 'video' else item for kind, item in media_of(prompt) if kind != 'image']
    pictures = [item for kind, item in media_of(prompt) if kind == 'image']
    bare = [
        {
            **message,
            'content': [part if part['type'] == 'text' else {'type': part['type']} for part in message['content']],
        }
        for message in prompt
    ]
    return dict(
        spec.processor(
            text=[spec.processor.apply_chat_template(bare, add_generation_prompt=True)],
            images=[pictures] if pictures else None,
            videos=[[item.frames for item in clips]],
            audio=[item.samples for item in sounds],
            sampling_rate=RATE,
            do_sample_frames=False,
            video_metadata=[video_metadata(item) for item in clips],
            videos_kwargs={
                'size': spec.processor.video_processor.to_dict()['size'],
                'fps': 2.0,
                'use_audio_in_video': True,
            },
            return_tensors='pt',
        )
    )


def conversation() -> Conversation:
    """Videos of unequal size whose audio is shorter and longer than they, an audio clip and an image between them."""
    return [
        user('Look:', heard(8, 1.3), media('audio', 0), heard(8, 4.9, size=(64, 32), number=1), 'What are these?'),
        assistant('Noise.'),
        user(media('image', 0), heard(8, 3.0, number=2), 'And now?'),
        assistant('More.'),
    ]


@pytest.mark.parametrize('family', OMNI)
def test_all_is_as_transformers_has_it(family: str, tiny: Tiny) -> None:
    spec = omni(tiny(family))
    prompt = conversation()[:-1]
    expected = plain_inputs(spec, prompt)
    piece = spec.encode_prompt(prompt)
    assert piece.media_counts == {'video': 3, 'audio': 4, 'image': 1}
    inputs = spec.generation_inputs([piece])
    assert torch.equal(inputs['input_ids'], expected['input_ids'])
    longest = inputs['input_features'].shape[-1]
    torch.testing.assert_close(inputs['input_features'], expected['input_features'][..., :longest])
    lengths = expected['feature_attention_mask'].sum(-1)
    assert torch.equal(inputs['feature_attention_mask'].sum(-1), lengths)
    for name in ('pixel_values_videos', 'video_grid_thw', 'pixel_values', 'image_grid_thw'):
        assert torch.equal(inputs[name], expected[name])
    positions, _ = skeleton(spec.config).get_rope_index(
        expected['input_ids'],
        expected['image_grid_thw'],
        expected['video_grid_thw'],
        torch.ones_like(expected['input_ids']),
        True,
        lengths,
        torch.as_tensor(expected['video_second_per_grid']),
    )
    torch.testing.assert_close(inputs['position_ids'][1:].float(), positions.float(), atol=1e-4, rtol=0)

    plain = transformers_class(spec.config).from_pretrained(tiny(family)).eval()
    how = {'max_new_tokens': 3, 'do_sample': False, 'return_dict_in_generate': True, 'output_logits': True}
    theirs = plain.generate(**expected, use_audio_in_video=True, **how)
    ours = plain.generate(**inputs, **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    new = ours.sequences[0, len(piece) :]
    example = Example(piece, [Piece(new, torch.ones(len(new)))])
    policy = policy_of(tiny(family), spec, 'padded')
    with torch.no_grad():
        scored = policy(TokenCollator(spec, 'padded')([example]), logits=True)[0, len(piece) - 1 : -1]
    torch.testing.assert_close(scored, torch.cat(theirs.logits), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize('family', OMNI)
@pytest.mark.parametrize('seconds', [0.2, 1.0, 2.0, 2.1, 3.9, 6.5])
def test_positions_follow_the_longer_of_video_and_audio(family: str, seconds: float, tiny: Tiny) -> None:
    spec = omni(tiny(family))
    prompt = [user(heard(8, seconds), 'What?')]
    expected = plain_inputs(spec, prompt)
    piece = spec.encode_prompt(prompt)
    assert torch.equal(piece.ids, expected['input_ids'][0])
    positions, _ = skeleton(spec.config).get_rope_index(
        expected['input_ids'],
        None,
        expected['video_grid_thw'],
        torch.ones_like(expected['input_ids']),
        True,
        expected['feature_attention_mask'].sum(-1),
        torch.as_tensor(expected['video_second_per_grid']),
    )
    found = spec.positions(piece.ids, piece.media, piece.token_tensors)
    torch.testing.assert_close(found[1:].float(), positions[:, 0].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('family', HEARING)
def test_videos_with_and_without_audio_share_a_turn_and_a_batch(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    silent = clip(4, 40, 60, seed=3)
    rows = [
        [user(silent, 'What?'), assistant('That.')],
        [user(heard(4, 1.2), silent, 'Which?'), assistant('The first.')],
        [user(heard(4, 0.9, number=1), 'What?'), assistant('That.'), user(silent, 'And?'), assistant('This.')],
    ]
    examples = [spec.encode(row) for row in rows]
    assert [whole(spec, example).media_counts.get('audio', 0) for example in examples] == [0, 1, 1]
    assert labelled(spec, examples[2]) == learnt(family, ['That.', 'This.'])
    layout = spec.layouts[-1]
    policy = policy_of(tiny(family), spec, layout)
    padded = TokenCollator(spec, 'padded')
    with torch.no_grad():
        alone = torch.cat([policy(padded([example])).values for example in examples])
        together = policy(TokenCollator(spec, layout)(examples)).values
    torch.testing.assert_close(together, alone, atol=5e-5, rtol=1e-4)

    prompts = [spec.encode_prompt(row[:-1]) for row in rows]
    plain = transformers_class(spec.config).from_pretrained(tiny(family)).eval()
    inputs = spec.generation_inputs(prompts)
    new = plain.generate(**inputs, max_new_tokens=2, do_sample=False)[:, inputs['input_ids'].shape[1] :]
    with torch.no_grad():
        logits = policy(
            padded([Example(prompt, [Piece(ids, torch.ones(2))]) for prompt, ids in zip(prompts, new, strict=True)]),
            logits=True,
        )
    for row, prompt in enumerate(prompts):
        assert logits[row, len(prompt) - 1 : len(prompt) + 1].argmax(-1).tolist() == new[row].tolist()


@pytest.mark.parametrize('family', HEARING)
def test_the_audio_of_a_video_matters(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, 'padded')
    collate = TokenCollator(spec, 'padded')
    with torch.no_grad():
        low, high = (
            policy(collate([spec.encode([user(part, 'What?'), assistant('This or that.')])])).values
            for part in (
                heard(4, 1.0),
                {**heard(4, 1.0), 'video': replace(heard(4, 1.0)['video'], audio=sound(1.0, pitch=900)['audio'])},
            )
        )
    assert float((low - high).abs().max()) > 1e-5


def test_gemma4_hears_a_video_where_load_audio_from_video_puts_its_audio(tiny: Tiny) -> None:
    spec = load(tiny('gemma4'))
    part = heard(4, 1.0)
    apart = [user({'type': 'video', 'video': replace(part['video'], audio=None)}, 'What?', sound(1.0, pitch=300))]
    found, expected = spec.encode_prompt([user(part, 'What?')]), spec.encode_prompt(apart)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.media['input_features'], expected.media['input_features'])
