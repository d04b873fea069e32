"""Generation and training see the same inputs, and both those that transformers' own processor makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Piece
from align_anything.models.any_model import AnyModel, transformers_class
from align_anything.policies.token.collator import TokenCollator
from tests.models.mixed import MEDIA, clip, conversation_of, first_turn, media, plain_inputs, policy_of, whole
from tests.models.samples import TEXT, assistant, load, single, user

Tiny = Callable[[str], Path]
NEW = 4


def prompts_of(family: str) -> list[Conversation]:
    """Prompts of unlike length: text alone, one medium of each kind, and two of each."""
    kinds = MEDIA.get(family, ())
    if not kinds:
        return [single()[:-1], [*single(), user('And how much is it if you add three?')]]
    prompts = [single()[:-1]]
    # transformers' processor of SmolVLM loses the images of a conversation with videos.
    for group in (['image'], ['video']) if family == 'smolvlm' else [kinds]:
        prompts += [first_turn(group)[:-1], [user(*(media(kind, 1) for kind in group), 'Which of two is it, then?')]]
        prompts.append([user(*(media(kind, number) for kind in group for number in (0, 1)), 'What are these?')])
    return prompts


@pytest.mark.parametrize('family', TEXT + tuple(MEDIA))
def test_generate_continues_as_the_policy_scores(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    groups: dict[Any, list[Piece]] = {}
    for prompt in map(spec.encode_prompt, prompts_of(family)):
        groups.setdefault(spec.generation_key(prompt), []).append(prompt)
    # In transformers' Qwen3-Omni an audio clip of less than a second hangs on what is beside it.
    kind = AnyModel if family == 'qwen3_omni_moe_thinker' else transformers_class(spec.config)
    plain = kind.from_pretrained(tiny(family)).eval()
    policy = policy_of(tiny(family), spec, 'padded')
    assert any(len(set(map(len, prompts))) > 1 for prompts in groups.values()), 'nothing is padded'
    for prompts in groups.values():
        inputs = spec.generation_inputs(prompts)
        found = plain.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        new = found.sequences[:, inputs['input_ids'].shape[1] :]
        assert new.shape == (len(prompts), NEW)
        examples = [Example(prompt, [Piece(ids, torch.ones(NEW))]) for prompt, ids in zip(prompts, new, strict=True)]
        with torch.no_grad():
            logits = policy(TokenCollator(spec, 'padded')(examples), logits=True)
        for row, prompt in enumerate(prompts):
            generated = torch.stack([step[row] for step in found.logits])
            # The plain class of Janus has no logits of codes.
            scored = logits[row, len(prompt) - 1 : len(prompt) - 1 + NEW, : generated.shape[1]]
            torch.testing.assert_close(generated, scored, atol=5e-5, rtol=1e-4)
            assert scored.argmax(-1).tolist() == new[row].tolist()


@pytest.mark.parametrize('family', tuple(MEDIA))
def test_a_prompt_for_generation_is_that_of_the_training_example(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    prompt = conversation_of(family)[:-1]
    piece, example = spec.encode_prompt(prompt), spec.encode([*prompt, assistant('More.')], 'last')
    assert torch.equal(piece.ids, example.prompt.ids)
    assert piece.media_counts == example.prompt.media_counts and piece.media_counts.keys() == set(MEDIA[family])
    for name in ('media', 'token_tensors'):
        same(vars(piece)[name], vars(example.prompt)[name])
    both = whole(spec, example)
    alone = spec.positions(piece.ids, piece.media, piece.token_tensors)
    assert torch.equal(alone, spec.positions(both.ids, both.media, both.token_tensors)[:, : len(piece)])
    batch = TokenCollator(spec, 'padded')([example])
    same({name: batch.inputs.arguments[name] for name in piece.media}, piece.media)


@pytest.mark.parametrize('family', tuple(MEDIA))
def test_inputs_are_those_of_the_plain_processor(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    # transformers' processor of SmolVLM loses the images of a conversation with videos.
    prompt = first_turn(['video'])[:-1] if family == 'smolvlm' else conversation_of(family)[:-1]
    inputs = spec.generation_inputs([spec.encode_prompt(prompt)])
    # Given by the families that keep transformers from finding them; test_family_mixed.py compares them.
    assert ('position_ids' in inputs) == ('omni' in family)
    inputs.pop('position_ids', None)
    same(inputs, as_trained(family, plain_inputs(spec, prompt)))


def as_trained(family: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the processor returns, but for what training needs in another form that means the same to the model."""
    if family == 'paligemma':
        # The processor writes labels unasked; here they are the weights of a piece.
        inputs.pop('labels')
    if family == 'llava_next_video':
        # One video a frame, so that videos of unequal length can share a batch: the tower sees each frame alone.
        inputs['pixel_values_videos'] = inputs['pixel_values_videos'].flatten(0, 1)[:, None]
    if family == 'qwen2_5_omni_thinker':
        # The processor pads audio clips to five minutes, which the tower then cuts off by the mask.
        longest = int(inputs['feature_attention_mask'].sum(-1).max())
        for name in ('input_features', 'feature_attention_mask'):
            inputs[name] = inputs[name][..., :longest]
    return inputs


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Both hold the same names, and bit for bit the same tensors under them."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], torch.as_tensor(tensor), rtol=0, atol=0, msg=name)


def test_unlike_prompts_that_the_model_class_cannot_take_are_refused(tiny: Tiny) -> None:
    spec = load(tiny('mllama'))
    prompts = [spec.encode_prompt(prompt) for prompt in prompts_of('mllama')]
    with pytest.raises(SampleError, match="'mllama' cannot take these prompts in one call: group them"):
        spec.generation_inputs(prompts)
    spec = load(tiny('llava_onevision'))
    prompts = [spec.encode_prompt([user(clip(frames, 40, 40), 'What?')]) for frames in (2, 4)]
    with pytest.raises(SampleError, match='group them by generation_key'):
        spec.generation_inputs(prompts)
    both = spec.encode_prompt([user(clip(2, 40, 40), clip(4, 40, 40), 'What?')])
    with pytest.raises(SampleError, match='a prompt has videos of 2 and 4 frames'):
        spec.generation_inputs([both])
