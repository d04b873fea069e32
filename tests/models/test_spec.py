"""The contract of a family: what the Protocol says is there, media are not trained where none are written, decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Message, Piece
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import TrainOn, require_written
from align_anything.models.spec import Spec
from tests.models.samples import assistant, load, picture, user

Tiny = Callable[..., Path]
SEEING = ('llava', 'qwen2_vl')
REASON = 'is an answer to train and holds image media, but models of type .* write no image: put the media into a user'


def drawn(text: str = 'Like this.') -> Message:
    """An answer with an image in it."""
    return {'role': 'assistant', 'content': [picture(56, 56), {'type': 'text', 'text': text}]}


def test_a_family_of_token_models_meets_the_contract(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    methods = {name for name, member in vars(Spec).items() if inspect.isfunction(member) and not name.startswith('_')}
    assert {'encode', 'decode'} <= methods and {'reads', 'emits'} <= set(Spec.__annotations__)
    for name in methods:
        assert inspect.signature(getattr(FamilySpec, name)) == inspect.signature(getattr(Spec, name)), name
    held = {name: getattr(spec, name) for name in Spec.__annotations__}
    assert (held['reads'], held['emits']) == ({'image'}, frozenset()) and 'vision_tower' in held['components']


@pytest.mark.parametrize('family', SEEING)
@pytest.mark.parametrize(
    ('conversation', 'train_on', 'turn'),
    [
        ([user('Draw.'), drawn()], 'all_assistant', 1),
        ([user('Draw.'), drawn()], 'last', 1),
        ([user('Draw.'), drawn()], 'all', 1),
        ([user('Draw.'), drawn(), user('What is it?'), assistant('A square.')], 'all_assistant', 1),
        ([user('Hello'), assistant('Hi.'), user('Draw.'), drawn()], 'last', 3),
    ],
)
def test_an_image_in_an_answer_to_train_is_refused(
    family: str, conversation: Conversation, train_on: TrainOn, turn: int, tiny: Tiny
) -> None:
    with pytest.raises(SampleError, match=f'^turn {turn} {REASON}.*data_cfgs.train_on: last'):
        load(tiny(family)).encode(conversation, train_on)


@pytest.mark.parametrize('family', SEEING)
def test_an_image_in_an_answer_of_the_history_is_read(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    history = [user('Draw.'), drawn(), user('What is it?')]
    for example in (
        spec.encode([*history, assistant('A square.')], 'last'),
        spec.encode_group([[*history, assistant(answer)] for answer in ('A square.', 'A dog.')]),
    ):
        assert example.prompt.media_counts == {'image': 1} and not example.prompt.weights.any()
        assert not any(response.media for response in example.responses)
    assert spec.encode_prompt(history).media_counts == {'image': 1}


@pytest.mark.parametrize('family', SEEING)
def test_an_image_in_an_answer_to_compare_is_refused_unless_it_is_judged(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    for pair in ([drawn(), assistant('No.')], [assistant('No.'), drawn()]):
        conversations = [[user('Draw.'), answer] for answer in pair]
        with pytest.raises(SampleError, match=f'^turn 1 {REASON}'):
            spec.encode_group(conversations)
        judged = spec.encode_group(conversations, judged=True)
        assert sum(response.media_counts.get('image', 0) for response in judged.responses) == 1


def test_what_a_family_emits_may_stand_in_an_answer() -> None:
    conversation = [user('Draw.'), drawn()]
    require_written(conversation, 'all_assistant', 0, {'image'}, 'models of this type write')
    with pytest.raises(SampleError, match='holds image media, but models of this type write no image'):
        require_written(conversation, 'all_assistant', 0, {'audio'}, 'models of this type write')


@pytest.mark.parametrize('family', ['llama', 'qwen2', *SEEING])
def test_a_response_is_decoded_without_its_end_and_padding_alone(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    response = spec.encode([user('Hello'), assistant('A red square.')]).responses[0]
    assert int(response.ids[-1]) == spec.renderer.end_of_turn_id
    padded = torch.cat([response.ids, torch.tensor([spec.pad_token_id] * 3)])
    for ids in (response.ids[:-1], response.ids, padded):
        [part] = spec.decode(Piece(ids, torch.ones(len(ids))))
        assert part['type'] == 'text' and part['text'].strip() == 'A red square.'
    nothing = response.ids[-1:]
    assert spec.decode(Piece(nothing, torch.ones(1))) == [{'type': 'text', 'text': ''}]


def test_special_tokens_within_a_response_stay_in_its_text(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_vl'))
    special = next(
        token
        for token, added in sorted(spec.tokenizer.added_tokens_decoder.items())
        if added.special and token not in (*spec.stop_token_ids, spec.pad_token_id)
    )
    end, words = spec.stop_token_ids[0], spec.tokenizer('red', add_special_tokens=False)['input_ids']
    ids = torch.tensor([*words, special, end, *words, special, end])
    shown = [spec.tokenizer.decode([token]) for token in (special, end)]
    [part] = spec.decode(Piece(ids, torch.ones(len(ids))))
    assert part['text'] == f'red{shown[0]}{shown[1]}red{shown[0]}'
