"""The state of a body stands in words behind what a step shows, in the numbers of its dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.actions import ActionSpace, Statistics
from align_anything.core.errors import SampleError
from align_anything.models.action_space import act_in
from align_anything.models.pretrained_model import load_spec
from align_anything.models.spoken_states import stated
from align_anything.models.turns import TurnEncoder, with_turns

LOW, HIGH = (-1.0, 0.0, 5.0), (1.0, 10.0, 5.0)
OWN = Statistics(LOW, HIGH, (0.0,) * 3, (1.0,) * 3, (True,) * 3)
WIDE = replace(OWN, low=(-2.0, 0.0, 5.0), high=(2.0, 10.0, 5.0))
SPACE = ActionSpace(
    names=('left', 'right'),
    tokens='words',
    states=('arm', 'lift'),
    state_statistics={'kitchen': OWN, 'bridge': WIDE},
    dataset='kitchen',
)


def seen(**beside: Any) -> dict[str, Any]:
    return {'role': 'user', 'content': [{'type': 'image', 'image': Image.new('RGB', (28, 28))}], **beside}


def test_numbers_are_bins_of_their_dataset() -> None:
    state = {'lift': (5.0,), 'other': (3.0,), 'arm': (1.0, 0.0)}
    # 256 equal bins of what lies between the percentiles, what lies beyond in the first and the last one.
    assert SPACE.state_bins(state) == [255, 0, 128]
    assert SPACE.state_bins(state, 'bridge') == [192, 0, 128]
    assert SPACE.state_bins({'arm': (-9.0, 99.0), 'lift': (5.0,)}) == [0, 255, 128]
    assert SPACE.state_bins({'arm': (-1.7e308, 1.7e308), 'lift': (5.0,)}) == [0, 255, 128]
    edges = [-1.0, -1.0 + 2 / 256 - 1e-9, -1.0 + 2 / 256, 1.0 - 2 / 256, 1.0 - 1e-9]
    assert [SPACE.state_bins({'arm': (edge, 5.0), 'lift': (5.0,)})[0] for edge in edges] == [0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ('state', 'reason'),
    [
        ({'arms': (0.0, 0.0), 'lift': (5.0,)}, r"no state 'arm', .* Did you mean 'arms'\? It tells: arms, lift"),
        ({'arm': (0.0,), 'lift': (5.0,)}, r'\(arm, lift\) has 2 numbers, and its statistics 3'),
        (None, r'a step tells no state \(arm, lift\)'),
    ],
)
def test_another_body_is_refused(state: dict[str, tuple[float, ...]] | None, reason: str) -> None:
    turn = seen() if state is None else seen(state=state)
    with pytest.raises(SampleError, match=reason):
        stated([turn], SPACE)
    assert stated([turn], replace(SPACE, states=())) == [turn]


def test_an_environment_tells_the_state_of_the_first_step_too() -> None:
    asked = [{'role': 'user', 'content': [{'type': 'text', 'text': 'go'}]}]
    state = {'arm': (1.0, 0.0), 'lift': (5.0,)}
    (turn,) = with_turns(asked, [seen(state=state)])
    assert turn['state'] == state and stated(asked, SPACE) == asked
    (told,) = stated([turn], SPACE)
    assert [part.get('text') for part in told['content']] == ['go', None, '\nState: 255 0 128;']


@pytest.mark.extended
def test_training_and_rollouts_write_the_same(tiny: Callable[..., Path]) -> None:
    spec = load_spec(str(tiny('qwen2_5_vl')), model_max_length=512)
    act_in(spec, SPACE)
    states = [{'arm': (1.0, float(step)), 'lift': (5.0,)} for step in range(2)]
    first = {**seen(state=states[0]), 'content': [{'type': 'text', 'text': 'go'}, *seen()['content']]}
    done = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'left'}]}
    example = spec.encode([first, done, seen(state=states[1]), done])
    (response,) = example.responses
    ids = [*example.prompt.ids.tolist(), *response.ids.tolist()]
    assert 'State: 255 0 128;' in spec.text_of(ids) and 'State: 255 25 128;' in spec.text_of(ids)
    prompt = spec.encode_prompt([first]).ids.tolist()
    assert ids[: len(prompt)] == prompt
    encoder = TurnEncoder(spec)
    encoder.check([])
    said = ids[len(prompt) : ids.index(spec.renderer.end_of_turn_id, len(prompt)) + 1]
    shown = encoder.piece(encoder.between([seen(state=states[1])]), said).ids.tolist()
    assert ids[: len(prompt) + len(said) + len(shown)] == [*prompt, *said, *shown]
