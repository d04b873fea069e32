"""What a service is sent of media in responses, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.errors import RewardError
from align_anything.core.types import Audio, CodedMedia, Message, Video
from align_anything.rewards.base import Completion, check_options, get_reward
from align_anything.rewards.messages import from_json, to_json
from align_anything.rewards.remote import RemoteReward
from align_anything.rewards.server import make_app
from tests.rewards.common import completion, served

RED = Image.new('RGB', (8, 8), (255, 0, 0))
CODES = CodedMedia('image', torch.zeros(1, 2, 2, dtype=torch.long))
TONE = Audio(np.linspace(-2, 2, 4000, dtype=np.float32), 8000)
CLIP = Video(np.full((2, 8, 8, 3), 9, np.uint8), np.array([0.0, 1.0]), 1.0)


def said(*parts: dict) -> Message:
    return {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Here:'}, *parts]}


def answer(*parts: dict) -> Completion:
    return replace(completion(), message=said(*parts))


def coloured() -> object:
    function = get_reward('colour')
    return make_app('colour', function, check_options('colour', function, {'colour': 'red', 'missing': -1}))


@pytest.fixture(scope='module')
def url() -> Iterator[str]:
    with served(coloured()) as address:
        yield f'{address}/get_reward'


def test_a_service_judges_generated_pictures(url: str) -> None:
    half = Image.new('RGB', (8, 8), (255, 0, 0))
    half.paste((0, 0, 0), (0, 0, 8, 4))
    asked = [answer({'type': 'image', 'image': picture, 'codes': CODES}) for picture in (RED, half)]
    assert RemoteReward(url, send_media=True)([*asked, answer()]) == [1.0, 0.5, -1.0]


@pytest.mark.parametrize(('send', 'medium'), [(False, RED), (True, CODES)])
def test_what_is_not_sent_is_missed(url: str, send: bool, medium: object) -> None:
    with pytest.raises(RewardError, match='the image in a response to completion 1 of the request was not sent'):
        RemoteReward(url, send_media=send, retries=0)([answer({'type': 'image', 'image': medium})])


def test_messages_keep_places_for_what_cannot_be_sent() -> None:
    media = {'image': RED, 'audio': TONE, 'video': CLIP}
    message = said(*({'type': kind, kind: medium} for kind, medium in media.items()), {'type': 'image', 'image': CODES})
    (sent,), (kept,) = to_json([message], True), to_json([message], False)
    assert [part['type'] for part in kept['content']] == ['text', 'image', 'audio', 'video', 'image']
    assert kept['content'][1:] == [{'type': kind} for kind in ('image', 'audio', 'video', 'image')]
    assert sent['content'][4] == {'type': 'image'} and 'codes' not in sent['content'][1]
    (found,) = from_json([sent])
    text, image, audio, video, coded = found['content']
    assert text == {'type': 'text', 'text': 'Here:'} and coded == {'type': 'image'}
    assert np.array_equal(image['image'], RED)
    assert np.array_equal(audio['audio'].samples, TONE.samples) and audio['audio'].rate == 8000
    assert np.array_equal(video['video'].frames, CLIP.frames)
    assert to_json(from_json([kept]), True) == [kept], 'a placeholder stays one'
