"""The prompt of an Example is, token for token, what `apply_chat_template` gives for generation."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.types import Conversation
from tests.models.samples import FAMILIES, IMAGE, ids_of, later_image, load, multi_turn, several_images, single

Tiny = Callable[[str], Path]


def _strings(conversation: Conversation) -> list[dict[str, str]]:
    return [{**message, 'content': message['content'][0]['text']} for message in conversation]


@pytest.mark.parametrize(
    ('family', 'make'),
    [(family, make) for family in FAMILIES for make in (single, multi_turn)]
    + [(family, make) for family in IMAGE for make in (several_images, later_image)],
)
def test_prompt_ids_are_those_of_transformers(family: str, make: Callable, tiny: Tiny) -> None:
    spec = load(tiny(family))
    prompt = make()[:-1]
    if spec.processor is None:
        expected = spec.tokenizer.apply_chat_template(_strings(prompt), add_generation_prompt=True)['input_ids']
    else:
        expected = spec.processor.apply_chat_template(make()[:-1], add_generation_prompt=True, tokenize=True)[0]
    assert spec.encode_prompt(prompt).ids.tolist() == list(expected)
    assert spec.encode(make(), train_on='last').prompt.ids.tolist() == list(expected)


@pytest.mark.parametrize(
    'family', ['llama', 'gemma2', 'gemma3_text', 'mistral', 'llava', 'llava_next', 'gemma3', 'idefics3']
)
def test_exactly_one_bos_and_in_front(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    ids = ids_of(spec.encode(multi_turn()))
    assert (ids == spec.tokenizer.bos_token_id).nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize('family', FAMILIES)
def test_a_pickled_spec_encodes_the_same(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = later_image() if family in IMAGE else multi_turn()
    before, after = spec.encode(conversation), pickle.loads(pickle.dumps(spec)).encode(conversation)
    assert torch.equal(ids_of(before), ids_of(after))
    assert torch.equal(before.responses[0].weights, after.responses[0].weights)
    for name, tensor in before.responses[0].media.items():
        assert torch.equal(tensor, after.responses[0].media[name])
