"""Pairs and labelled answers as Examples: one prompt, encoded once, and answers that are what they are alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.preference import PreferenceTask, UnpairedTask
from align_anything.datasets.source_loading import load_sources
from align_anything.models.rendering import first_differing_turn
from tests.datasets.clips import sound, tone
from tests.models.published import whole
from tests.models.samples import NO_THOUGHT, assistant, load, picture, user

Tiny = Callable[..., Path]
FAMILIES = ('llama', 'qwen3', 'llava', 'qwen2_vl', 'gemma3')
WITH_IMAGES = ('llava', 'qwen2_vl', 'gemma3')
ASKED = user('What is 1 + 1?')


def full_ids(example: Example, number: int) -> list[list[int]]:
    """The ids of each sequence of a response, its beginning of the prompt included."""
    return [whole(example, piece)[0].tolist() for piece in example.responses[number].sequences]


def full_weights(example: Example, number: int) -> list[list[float]]:
    return [whole(example, piece)[1].tolist() for piece in example.responses[number].sequences]


def same_as_alone(folder: Path, conversations: list[Conversation], judged: bool = False) -> Example:
    """Encodes a group and compares each of its responses with the conversation by itself."""
    spec = load(folder)
    group = spec.encode_group(conversations, judged=judged)
    at = first_differing_turn(conversations)
    for number, conversation in enumerate(conversations):
        alone = spec.encode_group([conversation], start=at, judged=judged)
        assert full_ids(group, number) == full_ids(alone, 0)
        assert full_weights(group, number) == full_weights(alone, 0)
        if at == 1 and not judged:
            # Earlier answers get an end that the template may not write, if they are trained.
            assert full_ids(alone, 0) == full_ids(spec.encode(conversation), 0)
    assert not group.prompt.weights.any() and all(piece.weights.any() for piece in group.responses)
    return group


@pytest.mark.parametrize('family', FAMILIES)
def test_answers_to_one_question(family: str, tiny: Tiny) -> None:
    group = same_as_alone(tiny(family), [[ASKED, assistant('It is two.')], [ASKED, assistant('It is three, I think')]])
    assert len(group.responses) == 2 and len(set(map(len, group.responses))) == 2


@pytest.mark.parametrize('family', FAMILIES)
def test_an_answer_to_judge_may_be_empty(family: str, tiny: Tiny) -> None:
    """A policy may sample nothing but the end; who writes an empty answer has made a mistake."""
    spec = load(tiny(family))
    conversations = [[ASKED, assistant('')], [ASKED, assistant(' ')], [ASKED, assistant('Two.')]]
    group = spec.encode_group(conversations, 'last', start=1, judged=True)
    nothing, _, two = group.responses
    *space, end = nothing.ids.tolist()
    said = spec.tokenizer.decode(space).removeprefix(NO_THOUGHT)
    assert end == spec.renderer.end_of_turn_id and not said.strip() and nothing.weights.all()
    alone = spec.encode_group(conversations[2:], start=1)
    assert torch.equal(group.prompt.ids, alone.prompt.ids) and torch.equal(two.ids, alone.responses[0].ids)
    for start in (1, None):
        with pytest.raises(SampleError, match='the answer is empty'):
            spec.encode_group(conversations, 'last', start=start)


@pytest.mark.parametrize('family', ['llama', 'llava', 'qwen2_vl'])
def test_answers_after_a_history_and_turns_after_the_first_differing_one(family: str, tiny: Tiny) -> None:
    history = [ASKED, assistant('Two.'), user('Sure?')]
    longer = [*history, assistant('Yes.'), user('Why?'), assistant('By counting.')]
    group = same_as_alone(tiny(family), [longer, [*history, assistant('No, three.')]])
    spec = load(tiny(family))
    learnt = [
        ''.join(spec.tokenizer.decode(piece.ids[piece.weights > 0]) for piece in response.sequences)
        for response in group.responses
    ]
    # Earlier answers are prompt, the user's later turn is not trained.
    assert 'Two' not in ''.join(learnt) and 'Why' not in learnt[0]
    assert 'Yes.' in learnt[0] and 'By counting.' in learnt[0] and 'No, three.' in learnt[1]
    with pytest.raises(SampleError, match='differ before the last one'):
        spec.encode_group([longer, [*history, assistant('No, three.')]], 'last')


@pytest.mark.parametrize('family', WITH_IMAGES)
def test_media_of_the_prompt_are_encoded_once(family: str, tiny: Tiny) -> None:
    asked = user(picture(60, 40), 'What is this?')
    group = same_as_alone(tiny(family), [[asked, assistant('Red.')], [asked, assistant('A blue circle.')]])
    assert group.prompt.media_counts == {'image': 1} and group.prompt.media
    assert not any(piece.media for piece in group.responses)


@pytest.mark.parametrize('family', ['llava', 'qwen2_vl'])
def test_media_of_the_responses_are_their_own(family: str, tiny: Tiny) -> None:
    """Two images for one prompt, to be judged, then one of them in a turn after the first differing one."""
    shown = [
        [user('Draw a square.'), {**assistant('Here.'), 'content': [drawn, *assistant('Here.')['content']]}]
        for drawn in (picture(60, 40), picture(30, 90, 'blue'))
    ]
    group = same_as_alone(tiny(family), shown, judged=True)
    spec = load(tiny(family))
    assert not group.prompt.media and [piece.media_counts for piece in group.responses] == [{'image': 1}] * 2
    for piece in group.responses:
        placeholders = torch.isin(piece.ids, torch.tensor(sorted(spec.media_token_ids)))
        assert placeholders.any() and not piece.weights[placeholders].any()
    one, other = (piece.media['pixel_values'] for piece in group.responses)
    assert one.shape != other.shape or not torch.equal(one, other)
    later = [ASKED, assistant('Two.'), user(picture(90, 50, 'green'), 'And this?'), assistant('Green.')]
    group = same_as_alone(tiny(family), [later, [ASKED, assistant('Three.')]])
    assert [piece.media_counts.get('image', 0) for piece in group.responses] == [1, 0]


def test_what_cannot_be_compared_says_why(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    answer = assistant('Red.')
    for conversations, reason in (
        ([[user('One?'), answer], [user('Two?'), answer]], 'must have the same prompt'),
        ([[user(picture(9, 9), 'This?'), answer], [user('This?'), answer]], 'must have the same prompt'),
        ([[user(picture(9, 9), 'This?'), answer], [user(picture(9, 9, 'blue'), 'This?'), answer]], 'the same prompt'),
        ([[ASKED, answer], [ASKED, assistant('Red.')]], 'nothing to prefer'),
        ([[ASKED, answer], [ASKED]], 'an answer is missing'),
        ([[ASKED, answer, user('So?'), answer], [ASKED, answer]], 'an answer is missing'),
        ([[ASKED, answer], [ASKED, user('Well?'), answer]], r'\(assistant and user\)'),
    ):
        with pytest.raises(SampleError, match=reason):
            spec.encode_group(conversations)


def test_answers_are_truncated_each_for_itself_and_never_into_media(tiny: Tiny) -> None:
    long = 'one two three four five six seven eight nine ten ' * 4
    conversations = [[ASKED, assistant('Two.')], [ASKED, assistant(long)]]
    full = load(tiny('llama')).encode_group(conversations)
    limit = len(full.prompt) + len(full.responses[0])
    group = load(tiny('llama'), max_length=limit).encode_group(conversations)
    assert torch.equal(group.responses[0].ids, full.responses[0].ids)
    assert torch.equal(group.responses[1].ids, full.responses[1].ids[: limit - len(full.prompt)])
    with pytest.raises(SampleError, match='the prompt alone has'):
        load(tiny('llama'), max_length=len(full.prompt)).encode_group(conversations)
    drawn = [ASKED, assistant('Two.'), user(picture(90, 50, 'green'), 'And this?'), assistant('Green.')]
    with pytest.raises(SampleError, match='media would be cut'):
        load(tiny('llava'), max_length=40).encode_group([drawn, [ASKED, assistant('Three.')]])


def dataset(folder: Path, task: Any, rows: list[dict[str, Any]], template: str, **options: Any) -> ExampleDataset:
    path = folder / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    kinds = frozenset({'image', 'audio'})
    return ExampleDataset(load_sources(str(path), template, **options), task, 'any_to_text', kinds)


class InMemory(list):
    """Rows that no file holds."""

    def row_name(self, number: int) -> str:
        return f'row {number}'


def test_rows_of_pairs_with_an_image_share_it(tiny: Tiny, tmp_path: Path) -> None:
    """Given once for both answers, or in each of two whole conversations, as a file or as bytes."""
    Image.new('RGB', (60, 40), 'red').save(tmp_path / 'red.png')
    content = {'bytes': (tmp_path / 'red.png').read_bytes(), 'path': None}

    def conversation(source: Any, words: str) -> list[dict[str, Any]]:
        return [{'role': 'user', 'content': [{'type': 'image', 'image': source}, {'type': 'text', 'text': 'This?'}]},
                {'role': 'assistant', 'content': words}]  # fmt: skip

    spec = load(tiny('qwen2_vl'))
    rows = [
        {'image': 'red.png', 'prompt': 'This?', 'chosen': 'Red.', 'rejected': 'A dog.'},
        {'chosen': conversation('red.png', 'Red.'), 'rejected': conversation('red.png', 'A dog.')},
    ]
    found = [dataset(tmp_path, PreferenceTask(spec.encode_group), [row], 'Preference')[0] for row in rows]
    task = PreferenceTask(spec.encode_group)
    # As a Hugging Face feature gives it: the bytes of each place are an object of their own.
    copies = [{**content, 'bytes': bytes(bytearray(content['bytes']))} for _ in range(2)]
    row = {'chosen': conversation(copies[0], 'Red.'), 'rejected': conversation(copies[1], 'A dog.')}
    [source] = load_sources(str(tmp_path / 'rows.jsonl'), 'Preference')
    whole_row = replace(source, rows=InMemory([row]))
    found.append(ExampleDataset([whole_row], task, 'any_to_text', frozenset({'image'}))[0])
    first = found[0]
    for example in found:
        assert isinstance(example, Example), example
        assert example.prompt.media_counts == {'image': 1}
        assert [full_ids(example, number) for number in range(2)] == [full_ids(first, number) for number in range(2)]


def test_audio_that_is_split_is_the_same_in_both_answers(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'tone.wav').write_bytes(sound(tone(2.3)))
    spec = load(tiny('qwen2_audio'))
    row = {'audio': 'tone.wav', 'prompt': 'What is this?', 'chosen': 'A tone.', 'rejected': 'A dog.'}
    options = {'audio': {'max_seconds': 1.0, 'long_audio': 'split'}}
    for template, task in (('Preference', PreferenceTask), ('Preference', UnpairedTask)):
        rows = dataset(tmp_path, task(spec.encode_group), [row, row], template, media_options=options)
        example = rows[0]
        assert isinstance(example, Example), example
        assert example.prompt.media_counts == {'audio': 3}


def test_rows_that_teach_nothing_are_left_out_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    spec = load(tiny('llama'), max_length=32)
    rows = [
        {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': 'Hello'},
        {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': ''},
        {'prompt': 'Hi ' * 60, 'chosen': 'Hello', 'rejected': 'Bye'},
        {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': 'Bye', 'margin': 0.5},
    ]
    *left_out, kept = (dataset(tmp_path, PreferenceTask(spec.encode_group), rows, 'Preference')[at] for at in range(4))
    reasons = ('both answers are the same', 'empty', 'the prompt alone has')
    for skipped, reason in zip(left_out, reasons, strict=True):
        assert isinstance(skipped, Skipped) and reason in skipped.reason, skipped
    assert kept.meta == {'margin': 0.5}
    task = PreferenceTask(spec.encode_group, meta_keys=('is_better_safe', 'is_worse_safe'))
    skipped = dataset(tmp_path, task, rows[3:], 'Preference')[0]
    assert 'does not tell is_better_safe and is_worse_safe' in skipped.reason


def test_labelled_answers_come_with_that_of_the_next_row(tiny: Tiny, tmp_path: Path) -> None:
    spec = load(tiny('llama'))
    rows = [
        {'prompt': 'One?', 'completion': 'First.', 'label': True},
        {'prompt': 'Two?', 'completion': 'Second one.', 'label': 0},
        {'prompt': 'Three?', 'completion': 'Third.', 'label': 'yes'},
    ]
    found = dataset(tmp_path, UnpairedTask(spec.encode_group), rows, 'Unpaired')
    for number, label in ((0, True), (1, False)):
        example = found[number]
        assert example.meta['desirable'] == [label] and len(example.responses) == 1
        own, other = (rows[(number + step) % 3]['completion'] for step in range(2))
        for piece, answer in ((example.responses[0], own), (example.unmatched, other)):
            alone = spec.encode([user(rows[number]['prompt']), assistant(answer)])
            assert torch.equal(example.prompt.ids, alone.prompt.ids)
            assert torch.equal(piece.ids, alone.responses[0].ids)
    assert "label is 'yes', not true or false" in found[2].reason

    pairs = [{'prompt': f'{number}?', 'chosen': f'Yes, {number}.', 'rejected': 'No.'} for number in range(3)]
    example = dataset(tmp_path, UnpairedTask(spec.encode_group), pairs, 'Preference')[2]
    assert example.meta['desirable'] == [True, False] and len(example.responses) == 2
    alone = spec.encode([user('2?'), assistant('Yes, 0.')])
    assert torch.equal(example.unmatched.ids, alone.responses[0].ids)


def test_answers_that_truncation_makes_equal_are_no_pair(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    question, same = user('How many?'), 'one two three four five six seven eight nine ten '
    pair = [[question, assistant(same + end)] for end in ('eleven', 'twelve')]
    task = PreferenceTask(spec.encode_group)
    whole = task.encode(pair)
    spec.max_length = len(whole.prompt) + 4
    with pytest.raises(SampleError, match='truncation leaves of the two answers is equal'):
        task.encode(pair)
