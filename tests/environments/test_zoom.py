"""A picture that is looked into: what is shown of it, and what an answer is worth."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from align_anything.core.types import Conversation
from align_anything.environments import Said
from align_anything.environments.golden import is_golden
from align_anything.environments.pool import EpisodeFailed, Pool
from tests.environments.one import One


def asked() -> Conversation:
    picture = Image.new('RGB', (200, 100), 'black')
    ImageDraw.Draw(picture).rectangle((150, 0, 199, 49), fill='red')
    return [{'role': 'user', 'content': [{'type': 'image', 'image': picture}, {'type': 'text', 'text': 'What?'}]}]


def one(**kwargs: float) -> One:
    made = One(Pool('zoom', {'pixels': 1024, **kwargs}), {'messages': asked(), 'ground_truth': 'Red'}, 0)
    assert 'zoom(left, top, right, bottom)' in made.begin().messages[0]['content'][0]['text']
    return made


def test_parts_are_shown_at_one_size_and_the_answer_is_judged() -> None:
    world = one(price=0.25)
    (message,) = world.step(Said('Hm. zoom(750, 0, 1000, 500)')).messages
    picture = message['content'][0]['image']
    assert picture.size == (32, 32) and {*map(tuple, np.asarray(picture)[2:-2, 2:-2].reshape(-1, 3))} == {(255, 0, 0)}
    (message,) = world.step(Said('zoom( 0 , 0, 500.0 , 1000)')).messages
    assert not np.asarray(message['content'][0]['image']).any()
    last = world.step(Said('It is red.')).step
    assert last.done and last.reward == 0.5 and last.info == {'success': True}


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        ('zoom(1, 2, 3)', 'takes four numbers'),
        ('zoom(0, 0, 2000, 10)', 'from 0 to 1000'),
        ('zoom(500, 0, 100, 500)', 'left less than right'),
        ('zoom(0, 0, 1000, 11)', 'too thin'),
        ('zoom(0, 0, 5, 5)', 'too thin'),
        ('zoom(everything)', 'takes four numbers'),
    ],
)
def test_parts_that_are_none_are_told(call: str, told: str) -> None:
    answered = one().step(Said(call))
    assert told in answered.messages[0]['content'][0]['text'] and answered.step.info == {'tool_errors': 1}


def test_no_more_is_shown_than_is_allowed() -> None:
    world = one(zooms=1)
    world.step(Said('zoom(0, 0, 500, 500)'))
    answered = world.step(Said('zoom(0, 0, 500, 500)'))
    assert answered.messages[0]['content'][0]['text'] == 'There is nothing more to see: answer.'
    assert world.step(Said('blue')).step.reward == 0


def test_rows_without_a_picture_or_an_answer() -> None:
    text = [{'role': 'user', 'content': [{'type': 'text', 'text': 'What?'}]}]
    with pytest.raises(EpisodeFailed, match='no picture to look into'):
        One(Pool('zoom'), {'messages': text}, 0).begin()
    world = One(Pool('zoom'), {'messages': asked()}, 0)
    world.begin()
    assert world.step(Said('red')).step.reward is None


def test_answers_that_are_golden() -> None:
    assert is_golden('It is 1,200.', '1200') and not is_golden('1200 or 3', '1200') and is_golden('7', '7.0')
    assert is_golden('A Big Cat!', 'big cat') and not is_golden('a big cat, no', 'big cat') and not is_golden('x', '?')
