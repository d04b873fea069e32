"""What is trained: for every family and every shape of conversation, the answers and their end-of-turn tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import SampleError
from tests.models.samples import (
    FAMILIES,
    IMAGE,
    WITHOUT_FILE,
    answers,
    assistant,
    ids_of,
    labelled,
    later_image,
    learnt,
    load,
    multi_turn,
    several_images,
    single,
    user,
)

Tiny = Callable[[str], Path]


@pytest.mark.parametrize('make', [single, multi_turn], ids=['single', 'multi_turn'])
@pytest.mark.parametrize('family', FAMILIES)
def test_answers_and_their_ends_are_labelled_and_nothing_else(family: str, make: Callable, tiny: Tiny) -> None:
    spec = load(tiny(family))
    example = spec.encode(make())
    assert labelled(spec, example) == learnt(family, answers(make()))
    assert not example.prompt.weights.any()
    assert example.prompt.ids.dtype == example.responses[0].ids.dtype == torch.int64


@pytest.mark.parametrize('make', [several_images, later_image], ids=['several_images', 'image_in_second_turn'])
@pytest.mark.parametrize('family', IMAGE)
def test_media_bear_no_label_wherever_they_stand(family: str, make: Callable, tiny: Tiny) -> None:
    spec = load(tiny(family))
    example = spec.encode(make())
    assert labelled(spec, example) == learnt(family, answers(make()))
    # Two images in the first turn belong to the prompt, one in the second turn to the response.
    holder, other = (example.prompt, example.responses[0])[:: 1 if make is several_images else -1]
    assert holder.media_counts == {'image': 2 if make is several_images else 1}
    assert holder.media and not other.media and not other.media_counts
    is_media = torch.isin(holder.ids, torch.tensor(sorted(spec.media_token_ids)))
    assert is_media.any() and not holder.weights[is_media].any()


@pytest.mark.parametrize('family', FAMILIES)
def test_labels_do_not_depend_on_the_pad_token(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family), pad_is_eos=True)
    assert spec.pad_token_id == spec.tokenizer.eos_token_id
    example = spec.encode(multi_turn())
    assert labelled(spec, example) == learnt(family, answers(multi_turn()))


@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_last_answer(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    example = spec.encode(multi_turn(), train_on='last')
    assert labelled(spec, example) == learnt(family, ['Yes!'])
    assert torch.equal(example.prompt.ids, spec.encode_prompt(multi_turn()[:-1]).ids)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_prompt_too_but_never_media(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = several_images() if family in IMAGE else multi_turn()
    example = spec.encode(conversation, train_on='all')
    weights = torch.cat([example.prompt.weights, example.responses[0].weights])
    is_media = torch.isin(ids_of(example), torch.tensor(sorted(spec.media_token_ids), dtype=torch.long))
    assert torch.equal(weights > 0, ~is_media)
    # The same tokens as without the prompt's labels, and after them what the template writes behind the last answer.
    plain = ids_of(spec.encode(conversation))
    assert torch.equal(ids_of(example)[: len(plain)], plain)


@pytest.mark.parametrize('family', FAMILIES)
def test_truncation_keeps_the_front(family: str, tiny: Tiny) -> None:
    conversation = several_images() if family in IMAGE else single()
    whole = load(tiny(family)).encode(conversation)
    limit = len(whole.prompt) + 3
    spec = load(tiny(family), max_length=limit)
    example = spec.encode(conversation)
    assert torch.equal(example.prompt.ids, whole.prompt.ids)
    assert torch.equal(example.responses[0].ids, whole.responses[0].ids[:3])
    assert (
        learnt(family, answers(conversation)).startswith(labelled(spec, example))
        and example.responses[0].weights.sum() == 3
    )
    assert len(example) == limit


@pytest.mark.parametrize('family', ['qwen2', 'llava'])
def test_a_prompt_that_fills_the_limit_is_refused_with_both_numbers(family: str, tiny: Tiny) -> None:
    tokens = len(load(tiny(family)).encode(single()).prompt)
    spec = load(tiny(family), max_length=tokens)
    with pytest.raises(SampleError, match=f'the prompt alone has {tokens} tokens, the limit is {tokens}'):
        spec.encode(single())


@pytest.mark.parametrize('family', IMAGE)
def test_truncation_never_cuts_media(family: str, tiny: Tiny) -> None:
    whole = load(tiny(family)).encode(later_image())
    is_media = torch.isin(ids_of(whole), torch.tensor(sorted(load(tiny(family)).media_token_ids)))
    last = int(is_media.nonzero()[-1])
    with pytest.raises(SampleError, match='media would be cut by truncation'):
        load(tiny(family), max_length=last).encode(later_image())
    spec = load(tiny(family), max_length=last + 1)
    kept = spec.encode(later_image())
    if spec.renderer.splits:
        # The answer behind the image has a sequence of its own, which is left out as nothing of it fits.
        assert labelled(spec, kept) == learnt(family, answers(later_image())[:1]) and not kept.responses[0].media
        return
    assert len(kept) == last + 1 and kept.responses[0].media_counts == {'image': 1}


def test_families_without_a_file_are_served_by_the_default_rules(tiny: Tiny) -> None:
    from align_anything.models.families import accustomed_class
    from align_anything.models.family import FamilySpec

    for family in FAMILIES:
        assert (accustomed_class(family) is None) == (family in WITHOUT_FILE)
    assert type(load(tiny('idefics3'))) is FamilySpec


def test_one_answer_with_two_ways_to_end_trains_the_one_the_template_writes(tiny: Tiny) -> None:
    spec = load(tiny('phi3'))
    # The tokenizer's end is another token than the template's; generation has to stop at both.
    assert spec.tokenizer.eos_token == '<|endoftext|>'
    assert spec.tokenizer.convert_ids_to_tokens(list(spec.stop_token_ids)) == ['<|endoftext|>', '<|end|>']


def test_trailing_user_turns_are_left_out(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    assert torch.equal(ids_of(spec.encode([*single(), user('Thanks')])), ids_of(spec.encode(single())))


def test_a_conversation_without_an_answer_is_refused(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    with pytest.raises(SampleError, match='no assistant turn'):
        spec.encode([user('Hello')])
    with pytest.raises(SampleError, match='the answer is empty'):
        spec.encode([user('Hello'), assistant('  ')])
