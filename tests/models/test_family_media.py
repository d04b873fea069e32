"""Media on their way into the model: merging, dummies, refusals, and a forward pass of the real class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Piece
from align_anything.models.encoding import merge_media
from align_anything.models.family import FamilySpec
from tests.models.samples import (
    FAMILIES,
    IMAGE,
    assistant,
    later_image,
    load,
    multi_turn,
    picture,
    several_images,
    single,
    user,
)

Tiny = Callable[[str], Path]


def forward(spec: FamilySpec, model: Any, pieces: Sequence[Piece]) -> Tensor:
    """Runs one sequence as a policy would; returns its logits `(length, vocabulary)`."""
    ids = torch.cat([piece.ids for piece in pieces])
    tensors = {
        name: torch.cat([piece.token_tensors.get(name, torch.zeros_like(piece.ids)) for piece in pieces])
        for name in spec.token_tensor_names
    }
    media = spec.merge_media([piece.media for piece in pieces])
    positions = spec.positions(ids, media, tensors)[:, None]
    with torch.no_grad():
        return model(
            input_ids=ids[None],
            position_ids=positions if spec.position_rows > 1 else positions[0],
            use_cache=False,
            **{name: tensor[None] for name, tensor in tensors.items()},
            **media,
        ).logits[0]


def model_of(folder: Path, spec: FamilySpec) -> Any:
    kind = AutoModelForImageTextToText if spec.processor is not None else AutoModelForCausalLM
    return kind.from_pretrained(folder).train()


def test_merging_pads_ragged_dimensions() -> None:
    parts = [{'a': torch.ones(1, 2, 3)}, {'b': torch.ones(2)}, {'a': torch.full((2, 1, 4), 2.0), 'b': torch.zeros(1)}]
    merged = merge_media(parts)
    assert merged['b'].tolist() == [1, 1, 0]
    assert merged['a'].shape == (3, 2, 4)
    # 1 * 2 * 3 ones and 2 * 1 * 4 twos; the rest is padding.
    assert float(merged['a'].sum()) == 6 + 16
    assert merge_media([]) == {} == merge_media([{}])


@pytest.mark.parametrize('family', FAMILIES)
def test_a_sequence_goes_through_the_model_as_transformers_would_take_it(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    model = model_of(tiny(family), spec)
    conversation = [*several_images(), *later_image()] if family in IMAGE else multi_turn()
    example = spec.encode(conversation, train_on='last')
    logits = forward(spec, model, [example.prompt, example.responses[0]])
    assert torch.isfinite(logits).all()
    if spec.processor is None:
        words = [{**m, 'content': m['content'][0]['text']} for m in conversation[:-1]]
        inputs = spec.tokenizer.apply_chat_template(words, add_generation_prompt=True, return_tensors='pt')
    else:
        inputs = spec.processor.apply_chat_template(
            conversation[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors='pt'
        )
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits[0]
    torch.testing.assert_close(logits[: len(expected)], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize('family', IMAGE)
def test_a_dummy_behind_a_sequence_changes_nothing_before_it(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    model = model_of(tiny(family), spec)
    dummy = spec.dummy('image')
    assert dummy.media_counts == {'image': 1} and not dummy.weights.any()
    assert set(dummy.token_tensors) == set(spec.token_tensor_names)
    for conversation in (single(), several_images()):
        example = spec.encode(conversation)
        pieces = [example.prompt, example.responses[0]]
        alone, together = forward(spec, model, pieces), forward(spec, model, [*pieces, dummy])
        torch.testing.assert_close(together[: len(alone)], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize('family', IMAGE)
def test_the_image_matters(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    model = model_of(tiny(family), spec)

    def last_logits(color: str) -> Tensor:
        example = spec.encode([user(picture(56, 56, color), 'What is it?'), assistant('Hm.')])
        return forward(spec, model, [example.prompt, example.responses[0]])[-1]

    assert float((last_logits('black') - last_logits('yellow')).abs().max()) > 1e-5


@pytest.mark.parametrize('family', IMAGE)
def test_a_placeholder_in_the_words_is_refused(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    literal = spec.placeholder('image')
    with pytest.raises(SampleError, match='1 image placeholders .* for 0 images'):
        spec.encode([user(f'What does {literal} mean?'), assistant('A picture.')])
    with pytest.raises(SampleError, match='placeholder'):
        spec.encode([user('What is it?'), assistant(f'A {literal}.')])
    inner = spec.tokenizer.convert_ids_to_tokens(min(spec.media_token_ids))
    with pytest.raises(SampleError, match='placeholder'):
        spec.encode([user('What is it?'), assistant(f'A {inner}.')])


def test_a_medium_the_model_does_not_take_is_refused(tiny: Tiny) -> None:
    with pytest.raises(SampleError, match='takes no image'):
        load(tiny('qwen2')).encode([user(picture(8, 8), 'What?'), assistant('No.')])
    with pytest.raises(SampleError, match='takes no audio'):
        load(tiny('gemma3')).encode([user({'type': 'audio', 'audio': [0.0]}, 'What?'), assistant('No.')])


def test_an_image_the_processor_cannot_take_is_one_bad_sample(tiny: Tiny) -> None:
    # Qwen's processor refuses sides that differ by more than 200 times.
    with pytest.raises(SampleError, match='Qwen2VLProcessor refuses'):
        load(tiny('qwen2_vl')).encode([user(picture(3000, 1), 'What?'), assistant('A line.')])


def test_a_processor_without_placeholders_needs_a_file(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    del spec.processor.image_token
    with pytest.raises(ModelError, match='families/llava.py that overrides placeholder'):
        type(spec)(spec.config, spec.tokenizer, spec.processor, max_length=64)


def test_a_processor_that_fails_on_a_plain_image_is_refused_at_the_door(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    spec.processor.patch_size = None
    with pytest.raises(ModelError, match='cannot encode a plain image'):
        type(spec)(spec.config, spec.tokenizer, spec.processor, max_length=64)
