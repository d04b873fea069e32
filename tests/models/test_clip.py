"""CLIP as a reward model: its score is that of transformers' class, whatever stands beside it in a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.any_model import AnyModelForScore
from align_anything.models.pretrained_model import load_model, load_spec
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from align_anything.testing.tiny.judges import WORDS, build_judge

Checkpoint = Callable[[], str]
CAPTIONS = ['A red fox', 'A blue boat on a sea of stone, and so on and on beyond what it reads', 'Hm']
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))
    for seed, (height, width) in enumerate([(40, 60), (56, 56), (90, 30), (8, 8)])
]


@pytest.fixture(scope='module')
def clip(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp('clip')
    return cache(lambda: str(build_judge('clip', folder / 'clip')))


def asked(caption: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    question = {'role': 'user', 'content': [{'type': 'text', 'text': caption}]}
    return [question, {'role': 'assistant', 'content': list(parts)}]


def picture(number: int) -> dict[str, Any]:
    return {'type': 'image', 'image': PICTURES[number]}


def policy_of(folder: str, **options: Any) -> ScorePolicy:
    spec = load_spec(folder)
    model = load_model(folder, spec.components, is_reward_model=True, **options)
    return ScorePolicy(model, TokenCollator(spec, 'padded', ('image',)), dtype=torch.float32)


@torch.no_grad()
def plain_score(folder: str, caption: str, number: int) -> float:
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    how = {'truncation': True, 'max_length': WORDS, 'return_tensors': 'pt'}
    return float(model(**processor(text=[caption], images=[PICTURES[number]], **how)).logits_per_image)


def test_its_score_is_that_of_transformers(clip: Checkpoint) -> None:
    policy = policy_of(clip())
    spec = policy.collate.spec
    examples = [
        spec.encode_group(
            [asked(CAPTIONS[0], picture(0)), asked(CAPTIONS[0], picture(1))], 'last', start=1, judged=True
        ),
        spec.encode_group([asked(CAPTIONS[1], picture(2))], 'last', start=1, judged=True),
        spec.encode_group([asked(CAPTIONS[2], picture(3))], 'last', start=1, judged=True),
    ]
    expected = [plain_score(clip(), CAPTIONS[text], number) for text, number in ((0, 0), (0, 1), (1, 2), (2, 3))]
    with torch.no_grad():
        assert policy(policy.collate(examples)).values.tolist() == pytest.approx(expected, abs=1e-4)
        alone = [float(policy(policy.collate([example])).values[0]) for example in examples]
    assert alone == pytest.approx([expected[0], *expected[2:]], abs=1e-4)
    policy.check(policy, torch.device('cpu'))
    assert policy.collate.layout == 'padded'


def test_all_of_it_gets_a_gradient_and_an_empty_batch_none(clip: Checkpoint) -> None:
    policy = policy_of(clip())
    spec = policy.collate.spec
    pair = [asked(CAPTIONS[0], picture(0)), asked(CAPTIONS[0], picture(1))]
    policy(policy.collate([spec.encode_group(pair, judged=True)])).values.diff().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert float(policy.model.logit_scale.grad) != 0
    policy.zero_grad()
    empty = policy(policy.collate([])).values
    empty.sum().backward()
    assert empty.tolist() == [0.0]
    assert not any(parameter.grad.any() for parameter in policy.parameters() if parameter.grad is not None)


def test_it_is_saved_as_the_plain_model(clip: Checkpoint, tmp_path: Path) -> None:
    model = AnyModelForScore.from_pretrained(clip())
    assert {*model.state_dict()} == {*CLIPModel.from_pretrained(clip()).state_dict()}
    with pytest.raises(ModelError, match='scores answers and writes none: train it with rm'):
        load_model(clip(), {}, is_reward_model=False)


@pytest.mark.parametrize(
    ('conversation', 'message'),
    [
        (
            [{'role': 'system', 'content': [{'type': 'text', 'text': 'Be kind.'}]}, *asked('A fox', picture(0))],
            'one turn',
        ),
        ([{'role': 'user', 'content': [picture(1)]}, asked('', picture(0))[1]], 'text alone in it'),
        (asked('A fox', picture(0), picture(1)), 'one image and nothing else'),
        (asked('A fox', {'type': 'text', 'text': 'Here: '}, picture(1)), 'one image and nothing else'),
        (asked('A fox', {'type': 'text', 'text': 'No.'}), 'one image and nothing else'),
        (asked('A fox'), 'one image and nothing else'),
        (asked('A fox', {'type': 'image', 'image': None}), 'one image and nothing else'),
    ],
)
def test_what_it_cannot_read_is_refused(conversation: list[Any], message: str, clip: Checkpoint) -> None:
    spec = load_spec(clip())
    with pytest.raises(SampleError, match=message):
        spec.encode_group([conversation], 'last', start=len(conversation) - 1, judged=True)
    with pytest.raises(SampleError, match='score answers and write none'):
        spec.encode(asked('A fox', picture(0)))


def test_texts_are_cut_to_what_it_reads(clip: Checkpoint) -> None:
    spec = load_spec(clip())
    example = spec.encode_group([asked(CAPTIONS[1], picture(0))], 'last', start=1, judged=True)
    assert len(example.prompt) == WORDS and int(example.prompt.ids[-1]) == spec.tokenizer.eos_token_id
    assert len(example.prompt) + len(example.responses[0]) == spec.max_length
    shorter = load_spec(clip(), model_max_length=5)
    assert len(shorter.encode_group([asked(CAPTIONS[1], picture(0))], 'last', start=1, judged=True).prompt) == 5
