"""Responses told as they grow are those that come back whole, and a seed of its own makes each hang on no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.generate import Generating
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Piece, Response
from align_anything.models.pretrained_model import load_spec
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.restricted import RowDraws
from align_anything.rollouts.streaming import _Growing
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.generator import Generator, open_generator
from tests.trainers.test_scoring import with_head

Tiny = Callable[..., Path]


def opened(pair: str, model: Path, **settings: Any) -> Generator:
    values = {'model_name_or_path': model, 'bf16': False, **settings}
    argv = [word for key, value in values.items() for word in (f'--{key}', str(value))]
    return open_generator(settings_of(PAIRS[pair], Generating, argv, {}), PAIRS[pair])


@pytest.fixture(scope='module')
def writer(tiny: Tiny) -> Iterator[Generator]:
    generator = opened('text_to_text', tiny('qwen2'), max_new_tokens=24)
    yield generator


def asked(generator: Generator, *texts: str) -> list[Any]:
    return [generator.encode([{'role': 'user', 'content': text}]) for text in texts]


def ids(found: list[list[Response]]) -> list[list[list[int]]]:
    return [[response.ids.tolist() for response in own] for own in found]


def test_each_response_has_a_seed_of_its_own(writer: Generator) -> None:
    examples = asked(writer, 'sun', 'a longer prompt about the sea', 'stone')
    sampling = replace(writer.sampling, responses=2, seeds=(1, 2, 3), top_k=20, temperature=1.5, top_p=0.9)
    together = writer.generate(examples, sampling)
    alone = [writer.generate([examples[at]], replace(sampling, seeds=(at + 1,)))[0] for at in (2, 0, 1)]
    assert ids(together) == ids([alone[1], alone[2], alone[0]])
    assert len({tuple(own) for prompt in ids(together) for own in prompt}) == 6
    # The log-probabilities are those of the whole distribution, of what was sampled.
    for responses in together:
        for response in responses:
            assert (response.per_unit['rollout'] <= 0).all() and len(response.per_unit['rollout']) == response.units
    greedy = replace(sampling, temperature=0.0)
    assert ids(writer.generate(examples, greedy)) == ids(writer.generate(examples, replace(greedy, seeds=None)))


def test_numbers_are_drawn_as_often_as_they_are_likely() -> None:
    left = torch.tensor([0.1, 0.0, 0.6, 0.3]).log().expand(2, -1)
    draw = RowDraws([5, 6])
    counts = torch.stack([draw(left) for _ in range(4000)])
    for row in counts.T:
        shares = torch.bincount(row, minlength=4) / 4000
        assert torch.allclose(shares, left[0].exp(), atol=0.03) and shares[1] == 0


@pytest.mark.parametrize('kept', [True, False])
def test_what_is_told_is_what_was_said(writer: Generator, kept: bool) -> None:
    examples = asked(writer, 'sun', 'sea')
    plain = replace(writer.sampling, responses=2, seeds=(7, 8))
    text = writer.generate(examples, plain)[0][0].parts[0]['text']
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    sampling = replace(plain, stop=(stop,), include_stop_str_in_output=kept)
    told: dict[tuple[int, int], str] = {}

    def tell(number: int, which: int, part: dict[str, Any]) -> None:
        told[number, which] = told.get((number, which), '') + part['text']

    found = writer.generate(examples, sampling, tell)
    for number, responses in enumerate(found):
        for which, response in enumerate(responses):
            assert told[number, which] == ''.join(part['text'] for part in response.parts)
    assert (stop in told[0, 0]) is kept and found[0][0].finished


def test_a_stream_ends_when_it_is_left(writer: Generator) -> None:
    (example,) = asked(writer, 'sun')
    sampling = replace(writer.sampling, seeds=(3,))
    items = list(writer.stream(example, sampling))
    assert len(items) > 4 and items[-1].ids.tolist() == ids(writer.generate([example], sampling))[0][0]
    assert ''.join(part['text'] for part in items[:-1]) == items[-1].parts[0]['text']
    # Whoever is told ends a response too, and no other one.
    steps: list[int] = []
    found = writer.generate([example, example], replace(sampling, seeds=(3, 4)), lambda number, *_: number == 0)
    assert len(found[0][0]) < len(items[-1]) and len(found[1][0]) == 24 and not steps
    stream = writer.stream(example, sampling)
    next(stream)
    stream.close()
    assert not writer._lock.locked()


def test_conversations_that_cannot_be_read_cost_a_sentence(writer: Generator) -> None:
    picture = {'type': 'image', 'image': '/no/such.png'}
    for turns, words in (
        ([{'role': 'user', 'content': [picture]}], 'image media'),
        ([{'role': 'nobody', 'content': 'x'}], "unknown role 'nobody'"),
        ([{'role': 'user', 'content': 'sun ' * 5000}], 'at most'),
        ([{'role': 'user', 'content': ''}], 'turn 0'),
    ):
        with pytest.raises(SampleError, match=words):
            writer.encode(turns)


def test_a_medium_is_told_once_it_is_whole(emitting: Tiny) -> None:
    """Between the texts around it, token by token; codes are never told as text, and nor is what opens them."""
    spec = load_spec(emitting('unified'))
    (own,) = [own for own in spec.codes.kinds.values() if own.kind == 'image']
    height, width = own.size
    codes = torch.arange(height * width).view(1, height, width) % own.books[0]
    picture, _ = own.written(codes)

    def words(text: str) -> list[int]:
        return spec.tokenizer.encode(text, add_special_tokens=False)

    sequence = [*words('Here it is: '), *picture.tolist(), *words(' and once more '), *picture.tolist(), *words('.')]
    sequence.append(spec.stop_token_ids[0])
    row, told = _Growing(spec, Sampling()), []
    for number in range(1, len(sequence) + 1):
        told += row.grown(sequence[:number])
    assert not any('text' in part and '<' in part['text'] for part in told)
    told += row.rest(spec.decode(Piece(torch.tensor(sequence), torch.ones(len(sequence)))))
    kinds = [kind for kind, _ in groupby(part['type'] for part in told)]
    assert kinds == ['text', 'image', 'text', 'image', 'text']
    assert ''.join(part.get('text', '|') for part in told) == 'Here it is: | and once more |.'
    assert all(part['image'].codes.equal(codes) for part in told if part['type'] == 'image')
    # One that the length limit cut is text in the end, as `decode` has it.
    cut, row = sequence[: len(words('Here it is: ')) + len(picture) - 3], _Growing(spec, Sampling())
    told = [part for number in range(1, len(cut) + 1) for part in row.grown(cut[:number])]
    assert ''.join(part['text'] for part in told).strip() == 'Here it is:'
    whole = spec.decode(Piece(torch.tensor(cut), torch.ones(len(cut))))
    told += row.rest(whole)
    assert ''.join(part['text'] for part in told) == whole[0]['text']


def test_a_pipeline_encodes_prompts_as_they_come(tiny: Tiny) -> None:
    generator = opened('text_to_image', tiny('sd3'), rollout_steps=2)
    examples = asked(generator, 'a red sun', 'sea', 'a red sun')
    sampling = replace(generator.sampling, seeds=(1, 2, 1))
    pictures = [responses[0].parts[0]['image'] for responses in generator.generate(examples, sampling)]
    assert pictures[0].tobytes() == pictures[2].tobytes() != pictures[1].tobytes()
    (alone,) = generator.generate(examples[:1], replace(sampling, seeds=(1,)))[0]
    assert alone.parts[0]['image'].tobytes() == pictures[0].tobytes()
    assert [type(item) for item in generator.stream(examples[0])] == [dict, Response]


def test_what_scores_does_not_write(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='it scores answers and writes none'):
        opened('text_to_text', with_head(tiny('llama'), tmp_path / 'judge'))
