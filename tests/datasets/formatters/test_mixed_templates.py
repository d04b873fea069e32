"""lmms-finetune's JSON and both forms of any2any, word for word as their documents show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Media, Skipped
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.template_registry import make_formatter
from tests.datasets import fakes
from tests.datasets.clips import clip, sound, tone
from tests.datasets.test_media import encoded, noisy

# As the document has it, the comma before the closing bracket included.
LMMS_FILE = """[
    {
        "system_prompt": "You are a helpful assistant.",
        "video": "path/to/video1.mp4",
        "num_frames": 10,
        "conversations": [
            {
                "from": "human",
                "value": "<video>\\nWhat is this video about?"
            },
            {
                "from": "gpt",
                "value": "This video shows a baby crying."
            },
        ]
    }
]
"""
CONV_FILE = """{
  "conversations": [
    {
      "role": "user",
      "content": "What's in the image?",
      "image": "path/to/image.jpg"
    },
    {
      "role": "assistant", 
      "content": "The image shows a cat sitting on a window."
    }
  ]
}
"""  # noqa: W291
IO_FILE = """{
  "input": {
    "modalities": ["text", "image"],
    "text": "Describe this image with voice",
    "image": "path/to/image.jpg"
  },
  "output": {
    "modalities": ["audio"],
    "audio": "path/to/response.wav"
  }
}
"""


def words(kind: str, value: Any) -> str:
    """What a decoded medium is: a video's number of frames, an audio clip's seconds, an image's size."""
    return {
        'video': lambda: f'{len(value.frames)} frames',
        'audio': lambda: f'{len(value.samples) / value.rate:.1f} s',
        'image': lambda: f'{value.size}',
    }[kind]()


def encode(conversation: Conversation, train_on: str = 'all_assistant') -> Example:
    """The rendered conversation rides along in `meta`."""
    lines = []
    for message in conversation:
        parts = [
            part['text'] if part['type'] == 'text' else f'[{words(part["type"], part[part["type"]])}]'
            for part in message['content']
        ]
        lines.append(f'{message["role"]}: {"".join(parts)}')
    example = fakes.encode([{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}])
    example.meta['lines'] = lines
    return example


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'path' / 'to').mkdir(parents=True)
    (tmp_path / 'path/to/video1.mp4').write_bytes(clip([number * 10 for number in range(20)]))
    (tmp_path / 'path/to/image.jpg').write_bytes(encoded(noisy(8), 'JPEG'))
    (tmp_path / 'path/to/response.wav').write_bytes(sound(tone(1.0)))
    return tmp_path


def lines_of(source: str, template: str, **options: Any) -> list[Any]:
    sources = load_sources(source, template, **options)
    dataset = ExampleDataset(sources, SupervisedTask(encode), 'any_to_text', frozenset({'image', 'video', 'audio'}))
    results = [dataset[index] for index in range(len(dataset))]
    return [result.reason if isinstance(result, Skipped) else result.meta['lines'] for result in results]


def test_the_example_of_lmms_finetune(folder: Path) -> None:
    (folder / 'data.json').write_text(LMMS_FILE)
    assert lines_of(str(folder / 'data.json'), 'LMMS') == [
        [
            'system: You are a helpful assistant.',
            'user: [10 frames]What is this video about?',
            'assistant: This video shows a baby crying.',
        ]
    ]


def test_the_examples_of_any2any(folder: Path) -> None:
    # One object a file, as the document shows them: on one line each, they make a data file.
    (folder / 'conv.jsonl').write_text(json.dumps(json.loads(CONV_FILE)))
    assert lines_of(str(folder / 'conv.jsonl'), 'Any2Any_Conv') == [
        ["user: [(8, 8)]What's in the image?", 'assistant: The image shows a cat sitting on a window.']
    ]
    (folder / 'io.jsonl').write_text(json.dumps(json.loads(IO_FILE)))
    assert lines_of(str(folder / 'io.jsonl'), 'Any2Any_IO') == [
        ['user: [(8, 8)]Describe this image with voice', 'assistant: [1.0 s]']
    ]
    # Its prompt is one to sample answers for.
    template = BoundTemplate(make_formatter('Any2Any_IO'), {'image': str(folder)})
    conversation, meta = template.format_prompt_only_sample(json.loads(IO_FILE))
    image, text = conversation[0]['content']
    assert image['image'].source == str(folder / 'path/to/image.jpg')
    assert text == {'type': 'text', 'text': 'Describe this image with voice'} and meta == {}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{'from': ('human', 'gpt')[index % 2], 'value': text} for index, text in enumerate(texts)]


def test_lmms_mixes_kinds_keeps_their_order_and_counts_frames_for_each_video(folder: Path) -> None:
    rows = [
        {
            'image': 'path/to/image.jpg',
            'video': ['path/to/video1.mp4', 'path/to/video1.mp4'],
            'audio': 'path/to/response.wav',
            'num_frames': [3, 5],
            'conversations': turns('First <video> then <image>, then <video>.', 'Yes.', 'Hear <audio>', 'No.'),
        },
        {'video': 'path/to/video1.mp4', 'conversations': turns('<video>What?', 'A.')},
        {'conversations': turns('Only text', 'A.')},
    ]
    (folder / 'data.json').write_text(json.dumps(rows))
    options = {'video': {'num_frames': 8}}
    assert lines_of(str(folder / 'data.json'), 'LMMS', media_options=options) == [
        ['user: First [3 frames] then [(8, 8)], then [5 frames].', 'assistant: Yes.']
        + ['user: Hear [1.0 s]', 'assistant: No.'],
        ['user: [8 frames]What?', 'assistant: A.'],
        ['user: Only text', 'assistant: A.'],
    ]


def test_folders_of_each_kind(folder: Path) -> None:
    (folder / 'rows').mkdir()
    row = {
        'image': 'image.jpg',
        'video': 'video1.mp4',
        'audio': str(folder / 'path/to/response.wav'),
        'conversations': turns('<image><video><audio>', 'A.'),
    }
    source = fakes.write_rows(folder / 'rows' / 'a.jsonl', [row])
    folders = {'image_folder': str(folder / 'path/to'), 'video_folder': str(folder / 'path' / 'to')}
    expected = [['user: [(8, 8)][4 frames][1.0 s]', 'assistant: A.']]
    assert lines_of(source, 'LMMS', **folders) == expected
    assert lines_of(source, 'LMMS', template_kwargs=folders) == expected
    (reason,) = lines_of(source, 'LMMS', image_folder=folders['image_folder'])
    assert 'video1.mp4' in reason and 'does not exist' in reason


def test_other_names_of_speakers() -> None:
    row = {'conversations': [{'from': 'user', 'value': 'Q'}, {'from': 'model', 'value': 'A'}], 'system_prompt': None}
    formatter = make_formatter('LMMS', {'user_key': 'user', 'assistant_key': 'model', 'system_prompt': 'Be brief.'})
    conversation, _ = formatter.format_supervised_sample(row)
    assert [turn['role'] for turn in conversation] == ['system', 'user', 'assistant']
    assert formatter.format_prompt_only_sample(row)[1]['ground_truth'] == 'A'
    matched, _ = formatter.format_unmatched_supervised_sample(
        row, {'conversations': [*row['conversations'][:1], {'from': 'model', 'value': 'B'}]}
    )
    assert matched[-1]['content'] == 'B'


ONE = {'video': 'a.mp4', 'conversations': turns('<video>Q', 'A')}
BAD_LMMS = [
    ({**ONE, 'conversations': turns('Q', 'A')}, 'have 0 <video>, but the row has 1 video(s)'),
    ({**ONE, 'conversations': turns('<video><video>Q', 'A')}, 'have 2 <video>, but the row has 1 video(s)'),
    ({**ONE, 'conversations': turns('Q', '<video>')}, 'have 0 <video>'),
    ({'conversations': turns('<image>Q', 'A')}, 'have 1 <image>, but the row has 0 image(s)'),
    ({**ONE, 'num_frames': [3, 4]}, "'num_frames' has 2 entries, but the row has 1 video(s)"),
    ({'conversations': turns('Q')}, 'has 1 turns'),
    ({'conversations': []}, 'has 0 turns'),
    ({'conversations': turns('Q', 'A')[::-1]}, "turn 0 is spoken by 'gpt' but should be by 'human'"),
    ({'conversations': ['Q', 'A']}, 'turn 0 should be a record'),
    ({'video': 'a.mp4'}, "no column 'conversations'"),
]


@pytest.mark.parametrize(('row', 'message'), BAD_LMMS)
def test_bad_lmms_rows_say_what_is_wrong(row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter('LMMS').format_supervised_sample(row)
    assert message in str(caught.value)


def test_a_number_of_frames_that_is_none_is_found_when_the_media_are_bound() -> None:
    for bad in ('many', 0, 2.5):
        with pytest.raises(SampleError, match='num_frames of the video should be a whole number above 0'):
            BoundTemplate(make_formatter('LMMS')).format_supervised_sample({**ONE, 'num_frames': bad})
    conversation, _ = BoundTemplate(make_formatter('LMMS')).format_supervised_sample({**ONE, 'num_frames': 6})
    assert conversation[0]['content'][0]['video'] == Media('video', 'a.mp4', {'num_frames': 6})


def shown(conversation: Conversation) -> list[list[Any]]:
    return [[part.get('text', part.get(part['type'])) for part in turn['content']] for turn in conversation]


def test_any2any_turns_place_their_own_media() -> None:
    row = {
        'conversations': [
            {'role': 'system', 'content': 'Look and listen.'},
            {'role': 'user', 'content': 'See', 'image': ['1.png', '2.png'], 'audio': None},
            {'role': 'assistant', 'content': 'No'},
            {'role': 'human', 'content': 'Hear <audio> then', 'audio': '3.wav', 'video': '4.mp4'},
            {'role': 'gpt', 'content': 'Ok'},
        ]
    }
    formatter = make_formatter('Any2Any_Conv')
    conversation, _ = BoundTemplate(formatter).format_supervised_sample(row)
    assert shown(conversation) == [
        ['Look and listen.'],
        [Media('image', '1.png'), Media('image', '2.png'), 'See'],
        ['No'],
        [Media('video', '4.mp4'), 'Hear ', Media('audio', '3.wav'), ' then'],
        ['Ok'],
    ]
    prompt, meta = formatter.format_prompt_only_sample(row)
    assert len(prompt) == 4 and meta['ground_truth'] == 'Ok'
    other = {'conversations': [row['conversations'][1], {'role': 'assistant', 'content': 'Yes'}]}
    assert formatter.format_unmatched_supervised_sample(row, other)[0][-1]['content'] == 'Yes'
    named = make_formatter('Any2Any_Conv', {'conversation_field': 'chat', 'system_prompt': 'Hi'})
    assert len(named.format_supervised_sample({'chat': other['conversations']})[0]) == 3


def test_any2any_answers_hold_media_behind_their_text_or_where_it_says() -> None:
    row = {
        'conversations': [
            {'role': 'user', 'content': 'Paint it', 'image': '1.png'},
            {'role': 'assistant', 'content': 'Here', 'image': ['2.png', '3.png'], 'audio': '4.wav'},
            {'role': 'user', 'content': 'Again'},
            {'role': 'assistant', 'image': '5.png', 'content': None},
        ]
    }
    template = BoundTemplate(make_formatter('Any2Any_Conv'))
    conversation, _ = template.format_supervised_sample(row)
    one, two, three, five, six = (Media('image', f'{number}.png') for number in (1, 2, 3, 5, 6))
    assert shown(conversation) == [[one, 'Paint it'], ['Here', two, three, Media('audio', '4.wav')], ['Again'], [five]]
    prompt, meta = template.format_prompt_only_sample(row)
    assert prompt == conversation[:-1] and meta == {}
    placed = {'role': 'assistant', 'content': 'A <image> b', 'image': '6.png'}
    matched, _ = template.format_unmatched_supervised_sample(row, {'conversations': [row['conversations'][0], placed]})
    assert matched[:-1] == prompt and shown(matched[-1:]) == [['A ', six, ' b']]
    both = {'input': {'text': 'Q'}, 'output': {'text': 'A', 'image': '6.png'}}
    conversation, _ = BoundTemplate(make_formatter('Any2Any_IO')).format_supervised_sample(both)
    assert shown(conversation[-1:]) == [['A', six]]
    assert 'ground_truth' not in make_formatter('Any2Any_IO').format_prompt_only_sample(both)[1]


def test_any2any_io_reads_what_is_listed_or_what_is_there() -> None:
    formatter = make_formatter('Any2Any_IO', {'system_prompt': 'Hi'})
    output = {'modalities': ['text'], 'text': 'A', 'audio': None}
    listed = {'modalities': ['audio', 'text'], 'text': 'Q', 'audio': '1.wav', 'image': 'not listed.png'}
    there = {'text': 'Q', 'audio': '1.wav', 'image': None}
    for given in (listed, there):
        conversation, meta = formatter.format_supervised_sample({'input': given, 'output': output})
        assert conversation == [
            {'role': 'system', 'content': 'Hi'},
            {'role': 'user', 'content': [{'type': 'audio'}, {'type': 'text', 'text': 'Q'}]},
            {'role': 'assistant', 'content': 'A'},
        ]
        assert meta == {'image': [], 'video': [], 'audio': ['1.wav']}
    row = {'input': {'modalities': ['video'], 'video': ['1.mp4', '2.mp4']}, 'output': {'text': 'A'}}
    prompt, meta = formatter.format_prompt_only_sample(row)
    assert prompt[1]['content'] == [{'type': 'video'}] * 2 and meta['ground_truth'] == 'A'
    assert formatter.format_unmatched_supervised_sample(row, row)[0][-1]['content'] == 'A'


USER = {'role': 'user', 'content': 'Q'}
INPUT = {'modalities': ['text'], 'text': 'Q'}
BAD_ANY2ANY = [
    ('Any2Any_Conv', {'conversations': [{'role': 'bot', 'content': 'Q'}]}, "unknown role 'bot'"),
    ('Any2Any_Conv', {'conversations': [{'content': 'Q'}]}, "no column 'role'"),
    ('Any2Any_Conv', {'conversations': ['Q']}, 'turn 0 should be a record'),
    ('Any2Any_Conv', {'messages': []}, "no column 'conversations'"),
    ('Any2Any_IO', {'input': 'Q', 'output': {'text': 'A'}}, "'input' should be a record but is str"),
    ('Any2Any_IO', {'input': INPUT}, "no column 'output'"),
    ('Any2Any_IO', {'input': {'modalities': ['smell']}, 'output': INPUT}, "the unknown ['smell']"),
    ('Any2Any_IO', {'input': {'modalities': ['image']}, 'output': INPUT}, "['image'], which it lacks"),
    ('Any2Any_IO', {'input': {'modalities': []}, 'output': INPUT}, 'lists nothing'),
    ('Any2Any_IO', {'input': INPUT, 'output': {'modalities': ['audio'], 'text': 'A'}}, "['audio'], which it lacks"),
]


@pytest.mark.parametrize(('name', 'row', 'message'), BAD_ANY2ANY)
def test_bad_any2any_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name).format_supervised_sample(row)
    assert message in str(caught.value)
