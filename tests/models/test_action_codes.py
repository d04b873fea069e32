"""Actions stand in a conversation as ids: which, with what weight, and back without a way through text."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Piece
from align_anything.models.action_codes import action_codes, at_the_tail, from_words
from align_anything.models.action_space import act_in, read_action_space, write_action_space
from align_anything.models.action_tokens import add_action_tokens
from align_anything.models.pretrained_model import load_spec
from align_anything.rollouts.base import Sampling, check_emission, restriction_of
from align_anything.rollouts.grammar import Emission
from tests.models.acting import ARM, NAMED, OPENVLA, acted, acting, episode
from tests.models.samples import load, user

Tiny = Callable[..., Path]


@pytest.mark.parametrize('restricted', [True, False])
def test_an_action_is_ids_at_the_tail_and_the_end_of_the_turn(restricted: bool, tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', NAMED, restricted)
    stop = spec.tokenizer.vocab_size
    assert spec.space.first_ids == (stop - 3,) and spec.emits == {'action'}
    example = spec.encode(episode(acted('left'), acted('forward')))
    (response,) = example.responses
    end = spec.renderer.end_of_turn_id
    weighed = response.ids[response.weights > 0].tolist()
    # What could not have been another id, the end of the turn, weighs nothing among legal ids.
    assert weighed == ([stop - 3, stop - 1] if restricted else [stop - 3, end, stop - 1, end])
    assert response.ids[0] == stop - 3 and response.ids[1] == end and response.media_counts == {'image': 1}
    assert pickle.loads(pickle.dumps(spec)).space == spec.space


@pytest.mark.parametrize('space', [ARM, OPENVLA])
def test_numbers_are_ids_of_their_bins_step_by_step(space: ActionSpace, tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', space)
    steps = [[-2.0, 10.0, 1.0], [0.3, 5.0, 0.0]]
    (response,) = spec.encode(episode(acted(*steps))).responses
    ids = response.ids[:6] - spec.space.first_ids[0]
    codes = spec.space.encode(acted(*steps)['content'][0]['action'])
    assert torch.equal(ids, codes.t().flatten()) and response.weights.tolist()[:7] == [1.0] * 6 + [0.0]
    lowest, highest = (7, 0) if space is OPENVLA else (0, 7)
    assert ids[0] == lowest and ids[1] == highest, 'ids of OpenVLA count down from the end'
    (part,) = spec.decode(Piece(response.ids, response.weights))
    restored = spec.codes.rules['action'].open().decode(part['action'].codes)
    half = torch.tensor([2.0, 5.0, 1.0]) / (7 if space is OPENVLA else 8)
    assert bool(((restored.values - torch.tensor(steps)).abs() <= half + 1e-9).all())


def test_a_chunk_that_the_episode_ends_in_is_padded_with_what_weighs_nothing(tiny: Tiny) -> None:
    for restricted in (True, False):
        spec = acting(tiny, 'qwen2_5_vl', ARM, restricted)
        (response,) = spec.encode(episode(acted([1.0, 5.0, 1.0]))).responses
        assert response.weights.tolist()[:6] == [1, 1, 1, 0, 0, 0]
        assert torch.equal(response.ids[:3], response.ids[3:6])
    with pytest.raises(SampleError, match=r'a turn has 3 steps of actions, but the model says 2 in one'):
        spec.encode(episode(acted(*[[1.0, 5.0, 1.0]] * 3)))
    with pytest.raises(SampleError, match="the action is 'left', and should be 3 numbers"):
        spec.encode(episode(acted('left')))


def test_ids_of_actions_never_go_through_text(tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', NAMED)
    token = spec.tokenizer.convert_ids_to_tokens(spec.space.first_ids[0])
    told = spec.tokenizer.convert_tokens_to_string([token])
    assert spec.tokenizer(told)['input_ids'] == [spec.space.first_ids[0]], 'a text that is such a token'
    # What is read may hold it, and is no action then.
    example = spec.encode([user(f'say {told}'), acted('left')])
    assert spec.space.first_ids[0] in example.prompt.ids and example.responses[0].units == 1
    act_in(spec, replace(spec.space, tokens='reserved'))
    with pytest.raises(SampleError, match='the text holds tokens of codes'):
        spec.encode([user(f'say {told}'), acted('left')])
    (part,) = spec.decode(
        Piece(torch.tensor([spec.space.first_ids[0] + 2, spec.renderer.end_of_turn_id]), torch.ones(2))
    )
    assert spec.codes.rules['action'].open().decode(part['action'].codes).names == ('forward',)


def test_words_are_said_as_text_and_read_again(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_5_vl'))
    act_in(spec, replace(NAMED, tokens='words', chunk=2))
    assert spec.codes is None and spec.emits == {'action'}
    (response,) = spec.encode(episode(acted('left', 'forward'))).responses
    assert spec.text_of(response.ids.tolist()).startswith('left, forward<|im_end|>') and response.weights.all()
    assert from_words(' left, forward\n', spec.space).names == ('left', 'forward')
    assert from_words('left or forward', spec.space) is None and from_words('', spec.space) is None
    with pytest.raises(SampleError, match="the action is 'up'"):
        spec.encode(episode(acted('up')))


def test_a_tail_that_means_something_is_refused(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_5_vl'))
    with pytest.raises(ModelError, match='cannot stand for actions, .*add-action-tokens'):
        at_the_tail(replace(ARM, bins=spec.tokenizer.vocab_size), spec.tokenizer)
    first = spec.stop_token_ids[0]
    with pytest.raises(ModelError, match='tokens that end a turn, pad it, or stand for media'):
        act_in(spec, replace(NAMED, first_ids=(first,)))
    with pytest.raises(ModelError, match='it is that of another checkpoint'):
        act_in(spec, replace(NAMED, first_ids=(10**6,)))


def test_a_response_is_a_chunk_and_its_end(tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', ARM)
    sampling = Sampling(max_new_tokens=7, emit=Emission({'action': None}, 'action'))
    check_emission(spec.codes, sampling)
    state = restriction_of(spec, sampling).grammar.start()
    first = spec.space.first_ids[0]
    for step in range(6):
        assert state.allowed == ((first, first + 8),), step
        state.advance(first + step)
    assert state.allowed == ((spec.renderer.end_of_turn_id, spec.renderer.end_of_turn_id + 1),)


def test_reserved_tokens_and_the_space_lie_in_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    space = ActionSpace(names=('up', 'down'))
    out = add_action_tokens(tiny('qwen2_5_vl'), space, tmp_path / 'model')
    spec = load_spec(out)
    assert spec.space == read_action_space(out) and spec.space.tokens == 'reserved'
    first = spec.space.first_ids[0]
    assert spec.tokenizer.convert_ids_to_tokens([first, first + 1]) == ['<|action_0|>', '<|action_1|>']
    (response,) = spec.encode(episode(acted('down'))).responses
    assert response.ids[0] == first + 1
    with pytest.raises(ModelError, match='has an action space already'):
        add_action_tokens(out, space, tmp_path / 'again')
    write_action_space(out, replace(spec.space, first_ids=(spec.stop_token_ids[0],)))
    with pytest.raises(ModelError, match='tokens that end a turn'):
        load_spec(out)


def test_codes_of_actions_stand_beside_those_of_media(tiny: Tiny) -> None:
    space = replace(NAMED, first_ids=(7,))
    both = action_codes(space, action_codes(replace(ARM, first_ids=(20, 20, 20))))
    assert both.kinds['action'].first == (7,)
    assert both.without('action') is None
    assert both.missing([episode(acted('left'))]) == []
