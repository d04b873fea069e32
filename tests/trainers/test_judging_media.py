"""Reward models that read pictures and sounds judge generated ones: in their own rate, and in their own codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.errors import ModelError
from align_anything.core.types import Audio, CodedMedia, Example
from align_anything.datasets.media.audio import resampled
from align_anything.models.codes import CODES
from align_anything.models.family import FamilySpec
from align_anything.rewards.base import Completion
from align_anything.testing import emitting
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.roles import ModelJudge, spec_of_judge
from tests.harness.once import once
from tests.models.samples import load
from tests.rewards.common import completion
from tests.trainers.test_judging import Reader
from tests.trainers.test_rewarding import settings

Tiny = Callable[..., Path]
RED, BLUE = Image.new('RGB', (56, 56), 'red'), Image.new('RGB', (56, 56), 'blue')


class Keeper(Reader):
    """Keeps the Examples too."""

    def score(self, examples: list[Example]) -> Any:
        self.examples = examples
        return super().score(examples)


def answers(*media: Any, **beside: Any) -> list[Completion]:
    """A response to one prompt for each medium."""
    first = completion('It is this: ', prompt='Make it.')

    def message(medium: Any) -> dict[str, Any]:
        kind = 'audio' if isinstance(medium, Audio) else 'image'
        part = {'type': kind, kind: medium, **beside}
        return {'role': 'assistant', 'content': [*first.message['content'], part]}

    return [replace(first, message=message(medium)) for medium in media]


def judge(spec: FamilySpec) -> tuple[ModelJudge, Keeper]:
    keeper = Keeper([])
    return ModelJudge('my-judge', keeper, spec, 8, max_length=2000, unread_score=-5.0), keeper


def conversations(completions: list[Completion]) -> list[Any]:
    return [[*one.conversation, one.turn] for one in completions]


def test_pictures_of_responses_are_read(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    asks, keeper = judge(spec)
    asks(answers(RED, BLUE))
    (example,) = keeper.examples
    expected = spec.encode_group(conversations(answers(RED, BLUE)), 'last', start=1, judged=True)
    for found, wanted in zip(example.responses, expected.responses, strict=True):
        assert found.media_counts == {'image': 1} and torch.equal(found.ids, wanted.ids)
        assert torch.equal(found.media['pixel_values'], wanted.media['pixel_values'])
    one, other = (response.media['pixel_values'] for response in example.responses)
    assert not torch.equal(one, other)


def test_codes_that_nobody_decoded_are_not_read(tiny: Tiny) -> None:
    asks, keeper = judge(load(tiny('llava')))
    coded = CodedMedia('image', torch.zeros(1, 2, 2, dtype=torch.long), 'other')
    scores = asks(answers(RED, coded))
    assert scores[1] == -5.0 != scores[0] and len(keeper.read) == 1
    (unread,) = asks.unread()
    assert 'codes of an image alone' in unread.reason


def test_sounds_are_heard_at_the_rate_of_the_judge(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_audio'))
    tone = Audio((0.5 * np.sin(np.arange(12000) / 9)).astype(np.float32), 24000)
    question = [{'role': 'user', 'content': [{'type': 'text', 'text': 'Sing this:'}, {'type': 'audio', 'audio': tone}]}]
    asks, keeper = judge(spec)
    asked = [replace(one, conversation=question) for one in answers(tone)]
    asks(asked)
    assert not asks.unread()
    heard = resampled(tone, spec.audio_rate)
    question = [{**question[0], 'content': [question[0]['content'][0], {'type': 'audio', 'audio': heard}]}]
    expected = spec.encode_group(
        conversations([replace(one, conversation=question) for one in answers(heard)]), 'last', start=1, judged=True
    )
    (example,) = keeper.examples
    assert example.prompt.media_counts == example.responses[0].media_counts == {'audio': 1}
    for found, wanted in ((example.prompt, expected.prompt), (example.responses[0], expected.responses[0])):
        assert torch.equal(found.ids, wanted.ids) and found.media.keys() == wanted.media.keys()
        assert all(torch.equal(found.media[name], wanted.media[name]) for name in wanted.media)


@pytest.mark.parametrize('family', ['llava', 'qwen2_vl', 'gemma3'])
def test_answers_of_a_picture_alone_are_read(family: str, tiny: Tiny) -> None:
    """LLaVA's template ends each text, and writes nothing behind a picture."""
    spec = load(tiny(family))
    asks, keeper = judge(spec)
    alone = [replace(one, message={**one.message, 'content': one.message['content'][1:]}) for one in answers(RED, BLUE)]
    asks(alone)
    assert not asks.unread() and len(keeper.read) == 2
    (example,) = keeper.examples
    assert all(response.media_counts == {'image': 1} for response in example.responses)
    assert {ids[-1] for ids in keeper.read} == {spec.renderer.end_of_turn_id}


@pytest.fixture(scope='module')
def drawing(shared_cache: Path) -> Path:
    return once(shared_cache, 'judge-that-draws', lambda folder: emitting.drawing_model(folder, hidden=32, layers=1))


def test_a_judge_that_reads_codes_makes_its_own(drawing: Path) -> None:
    """It was trained on the codes of its codec; those of the policy's are none of its."""
    spec = load(drawing)
    rules = spec.codes.rules['image']
    codec = rules.open('cpu')
    digit, other = emitting.digits()[0][:2]
    asks, keeper = judge(spec)
    foreign = CodedMedia('image', torch.zeros(1, 2, 2, dtype=torch.long), 'other')
    asks(answers(digit, other, **{CODES: foreign}))
    (example,) = keeper.examples
    for medium, response in zip((digit, other), example.responses, strict=True):
        written, _ = spec.codes.kinds['image'].written(codec.encode([medium])[0])
        ids = response.ids.tolist()
        assert any(ids[start : start + len(written)] == written.tolist() for start in range(len(ids)))


def test_codes_of_its_own_codec_are_not_made_again(drawing: Path) -> None:
    spec = load(drawing)
    own = CodedMedia('image', torch.arange(16).view(1, 4, 4), spec.codes.rules['image'].fingerprint)
    written, _ = spec.codes.kinds['image'].written(own.codes)
    for completions in (answers(emitting.digits()[0][0], **{CODES: own}), answers(own)):
        asks, keeper = judge(spec)
        asks(completions)
        ids = keeper.examples[0].responses[0].ids.tolist()
        assert any(ids[start : start + len(written)] == written.tolist() for start in range(len(ids)))


def test_a_judge_reads_what_answers_are_made_of(tiny: Tiny, drawing: Path) -> None:
    def spec(model: Path, pair: str) -> FamilySpec:
        cfgs = settings('--reward_model_name_or_path', str(model)).cfgs
        (asked,) = cfgs.model_cfgs.judges.values()
        return spec_of_judge(cfgs, asked, PAIRS[pair])

    with pytest.raises(ModelError, match="takes no image, which the pair 'text_to_image' is about"):
        spec(tiny('llama'), 'text_to_image')
    assert 'image' in spec(tiny('llava'), 'text_to_image').reads
    assert 'image' in spec(drawing, 'text_to_image').emits
    with pytest.raises(ModelError, match='takes no audio'):
        spec(tiny('llava'), 'text_to_audio')
    spec(tiny('llava'), 'any_to_any')
    assert PAIRS['any_to_any'].judged.reads == PAIRS['any_to_any'].reads and not PAIRS['text_to_image'].judged.writes
