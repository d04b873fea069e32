"""The templates with column mapping whose answers are media, by option or among the messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy
import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Example, Skipped
from align_anything.datasets import BaseFormatter
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.template_registry import make_formatter
from tests.datasets import fakes
from tests.datasets.formatters.test_media_answer_templates import Said, answer, asked, bound, said
from tests.datasets.test_media import encoded, noisy

EDIT = {'prompt': 'edit_prompt', 'images': 'input_image', 'response': 'edited_image', 'answers': 'image'}
DRAWN = [
    {'role': 'user', 'content': 'Repaint <image>'},
    {'role': 'assistant', 'content': 'Here: <image>'},
    {'role': 'user', 'content': 'Again'},
    {'role': 'assistant', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Done'}]},
]
SHARED = [
    {'from': 'human', 'value': 'Sing'},
    {'from': 'gpt', 'value': '<audio>'},
    {'from': 'human', 'value': 'Again'},
    {'from': 'gpt', 'value': 'No'},
]
CHAT = [asked('Repaint ', '1'), answer('Here: ', '2'), asked('Again'), answer('3', 'Done')]

SUPERVISED: list[tuple[str, dict, dict, Said]] = [
    ('Instruction', {'answers': 'image'}, {'prompt': 'A fox', 'image': 'a.png'}, [asked('A fox'), answer('a.png')]),
    ('Instruction', {'answers': 'image'}, {'text': 'A fox', 'image': 'a.png'}, [asked('A fox'), answer('a.png')]),
    (
        'Instruction',
        {'answers': 'audio', 'response': 'audiocap_path'},
        {'caption': 'Rain', 'audiocap_path': 'a.wav', 'image': 'cover.png'},
        [asked('cover.png', 'Rain'), answer('a.wav')],
    ),
    (
        'Instruction',
        EDIT,
        {'edit_prompt': 'Paint it', 'input_image': 'a.png', 'edited_image': 'b.png'},
        [asked('a.png', 'Paint it'), answer('b.png')],
    ),
    # An image without what a mask hides, which is the answer too.
    (
        'Instruction',
        {'answers': 'image', 'images': 'image, mask'},
        {'prompt': 'Fill it', 'image': 'a.png', 'mask': 'm.png'},
        [asked('a.png', 'm.png', 'Fill it'), answer('a.png')],
    ),
    (
        'Instruction',
        {'answers': 'image'},
        {'prompt': 'A fox', 'image': '{"codes": [[1, 2]]}'},
        [asked('A fox'), answer({'codes': [[1, 2]]})],
    ),
    (
        'Preference',
        {'answers': 'image'},
        {'prompt': 'A fox', 'better_image': 'a.png', 'worse_image': 'b.png'},
        [asked('A fox'), answer('a.png')],
    ),
    (
        'Unpaired',
        {'answers': 'audio'},
        {'prompt': 'Rain', 'audio': 'a.wav', 'label': True},
        [asked('Rain'), answer('a.wav')],
    ),
    (
        'Rated',
        {'answers': 'image'},
        {'prompt': 'A fox', 'images': ['a.png', 'b.png'], 'ranks': [2, 1]},
        [asked('A fox'), answer('b.png')],
    ),
    ('Messages', {}, {'messages': DRAWN, 'images': ['1', '2', '3']}, CHAT),
    (
        'Messages',
        {},
        {'messages': [*DRAWN[:1], {'role': 'assistant', 'content': '', 'images': ['2']}], 'images': ['1']},
        [asked('Repaint ', '1'), answer('2')],
    ),
    (
        'Messages',
        {},
        {
            'messages': [
                {'role': 'user', 'content': [{'type': 'image', 'index': 0}, {'type': 'text', 'text': 'Repaint'}]},
                {'role': 'assistant', 'content': [{'type': 'image', 'index': 1, 'text': None}]},
            ],
            'images': ['1', '2'],
        },
        [asked('1', 'Repaint'), answer('2')],
    ),
    (
        'ShareGPT',
        {},
        {'conversations': SHARED, 'audio': 'a.wav'},
        [asked('Sing'), answer('a.wav'), asked('Again'), answer('No')],
    ),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'expected'), SUPERVISED)
def test_supervised(name: str, options: dict, row: dict, expected: Said) -> None:
    conversation, _ = bound(name, **options).format_supervised_sample(row)
    assert said(conversation) == expected


@pytest.mark.parametrize(('name', 'options', 'row', 'expected'), SUPERVISED)
def test_prompts_leave_out_the_answer_with_its_media(name: str, options: dict, row: dict, expected: Said) -> None:
    conversation, meta = bound(name, **options).format_prompt_only_sample(row)
    assert said(conversation) == expected[:-1]
    assert meta.get('ground_truth') == ('No' if name == 'ShareGPT' else None)


@pytest.mark.parametrize(('name', 'options', 'row', 'expected'), SUPERVISED)
def test_unmatched_takes_the_answer_with_its_media(name: str, options: dict, row: dict, expected: Said) -> None:
    conversation, _ = bound(name, **options).format_unmatched_supervised_sample(row, row)
    assert said(conversation) == expected


def test_an_answer_shows_the_medium_that_it_names_and_no_other() -> None:
    def row(first: str, second: str) -> dict[str, Any]:
        content = [{'type': 'image', 'index': 0}]
        shown = [
            {'role': 'user', 'content': [{'type': 'image', 'index': 1}]},
            {'role': 'assistant', 'content': content},
        ]
        return {'messages': shown, 'images': [first, second]}

    template = bound('Messages')
    assert said(template.format_supervised_sample(row('1', '2'))[0]) == [asked('2'), answer('1')]
    # Numbers that count on media of the answer mean nothing without it.
    for hook in (
        template.format_prompt_only_sample,
        partial(template.format_unmatched_supervised_sample, row('3', '4')),
    ):
        with pytest.raises(SampleError, match='name the indices'):
            hook(row('1', '2'))


@pytest.mark.parametrize(
    ('name', 'row', 'better', 'worse'),
    [
        ('Preference', {'text': 'A fox', 'chosen': 'a.png', 'rejected': 'b.png'}, 'a.png', 'b.png'),
        ('Rated', {'prompt': 'A fox', 'images': ['a.png', 'b.png', 'c.png'], 'ranks': [2, 3, 1]}, 'c.png', 'b.png'),
        ('Rated', {'prompt': 'A fox', 'images': ['a.png', 'b.png'], 'ratings': [2, 1]}, 'a.png', 'b.png'),
    ],
)
def test_preference(name: str, row: dict, better: str, worse: str) -> None:
    template = bound(name, answers='image')
    *conversations, _ = template.format_preference_sample(row)
    assert [said(conversation) for conversation in conversations] == [
        [asked('A fox'), answer(better)],
        [asked('A fox'), answer(worse)],
    ]
    assert not template.check_equal(row)


def test_answers_of_text_and_media_are_messages() -> None:
    drawn = [{'role': 'assistant', 'content': [{'type': 'text', 'text': 'Here'}, {'type': 'image', 'image': 'a.png'}]}]
    row = {'prompt': 'A fox', 'chosen': drawn, 'rejected': 'No.'}
    better, worse, _ = bound('Preference').format_preference_sample(row)
    assert said(better) == [asked('A fox'), answer('Here', 'a.png')] and said(worse)[-1] == answer('No.')


def test_prompts_alone_need_no_answers() -> None:
    for name in ('Instruction', 'Preference', 'Unpaired'):
        conversation, meta = bound(name, answers='image').format_prompt_only_sample({'caption': 'A fox'})
        assert said(conversation) == [asked('A fox')] and meta == {}


@pytest.mark.parametrize(
    ('name', 'row', 'message'),
    [
        ('Instruction', {'prompt': 'A fox', 'image': ['a.png', 'b.png']}, "'image' should hold one image but holds 2"),
        ('Instruction', {'prompt': 'A fox', 'image': None}, "column 'image' is null"),
        ('Instruction', {'prompt': 'A fox', 'img': 'a.png'}, "'response' or 'answer' or 'image'"),
        (
            'Preference',
            {'prompt': 'A', 'chosen': 'a', 'rejected': []},
            "'rejected' should hold one image but holds none",
        ),
        ('Rated', {'prompt': 'A', 'images': ['a', 'b']}, "the template option 'ratings' or 'ranks'"),
        ('Preference', {'chosen': 'a.png', 'rejected': 'b.png'}, 'the row has no prompt'),
    ],
)
def test_bad_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        formatter = make_formatter(name, {'answers': 'image'})
        formatter.format_supervised_sample(row)
    assert message in str(caught.value)


def test_an_unknown_kind_of_answers_is_a_fault_of_the_setting() -> None:
    with pytest.raises(DataError, match="option 'answers' .* is 'images'. Did you mean 'image'"):
        bound('Instruction', answers='images').format_supervised_sample({'prompt': 'A fox', 'image': 'a.png'})


class Sung(BaseFormatter):
    def format_preference_sample(self, raw_sample: dict) -> Any:
        answers = [[{'type': 'audio', 'audio': {'array': raw_sample[name]}}] for name in ('better', 'worse')]
        better, worse = ([{'role': 'assistant', 'content': content}] for content in answers)
        return better, worse, {}


def test_answers_of_samples_are_compared_number_by_number() -> None:
    one, other = numpy.zeros(4), numpy.array([0, 0, 0, 1.0])
    assert Sung().check_equal({'better': one, 'worse': one.copy()})
    assert not Sung().check_equal({'better': one, 'worse': other})


def test_media_of_answers_are_read_where_paths_of_the_rows_start(tmp_path: Any) -> None:
    (tmp_path / 'a.png').write_bytes(encoded(noisy(8), 'PNG'))
    rows = [{'text': 'A fox', 'image': 'a.png'}, {'text': 'None', 'image': 'b.png'}]
    source = fakes.write_rows(tmp_path / 'rows.jsonl', [*rows, {'text': 'Coded', 'image': {'codes': [[1, 2], [3, 4]]}}])
    sources = load_sources(source, 'Instruction', template_kwargs={'answers': 'image'})

    def encode(conversation: list, train_on: str = 'all_assistant') -> Example:
        example = fakes.encode([{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}])
        example.meta['answer'] = conversation[-1]['content'][0]['image']
        return example

    dataset = ExampleDataset(sources, SupervisedTask(encode), 'text_to_image', frozenset({'image'}))
    drawn, lost, coded = (dataset[index] for index in range(3))
    assert drawn.meta['answer'].size == (8, 8)
    assert isinstance(lost, Skipped) and 'b.png' in lost.reason
    assert coded.meta['answer'].codes.tolist() == [[[1, 2], [3, 4]]]
