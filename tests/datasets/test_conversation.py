"""The normal form: parts, media in their places, counts, roles, empty turns."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Conversation, Media
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.conversation import bind_media, without_media
from align_anything.datasets.media import MediaCache, decode_conversations
from align_anything.datasets.template_registry import make_formatter

REPLY = {'role': 'assistant', 'content': 'Yes.'}
BOUND_REPLY = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Yes.'}]}


def text(value: str) -> dict[str, Any]:
    return {'type': 'text', 'text': value}


def image(source: Any) -> dict[str, Any]:
    return {'type': 'image', 'image': Media('image', source)}


def asked(content: Any, *more: Any) -> list[dict[str, Any]]:
    return [{'role': 'user', 'content': content}, REPLY, *more]


def first(conversation: Conversation) -> list[dict[str, Any]]:
    return conversation[0]['content']


@pytest.mark.parametrize(
    ('content', 'meta', 'expected'),
    [
        ('Hi', {}, [text('Hi')]),
        (['Hi', text('there')], {}, [text('Hi'), text('there')]),
        # No media of the kind in the row: what looks like a placeholder is text, for instance in lessons on HTML.
        ('Use <video> here', {}, [text('Use <video> here')]),
        ('Use <video> here', {'image': None}, [text('Use <video> here')]),
        # Placeholders in text.
        ('<image>\nWhat?', {'image': 'a'}, [image('a'), text('What?')]),
        ('What?\n<image>', {'image': 'a'}, [text('What?'), image('a')]),
        ('<image>What?', {'image': ['a']}, [image('a'), text('What?')]),
        (
            'See <image> and <image>!',
            {'images': ['a', 'b']},
            [text('See '), image('a'), text(' and '), image('b'), text('!')],
        ),
        ('<image><image>\nSame?', {'image': ('a', 'b')}, [image('a'), image('b'), text('Same?')]),
        ('<image>\n<image>\nSame?', {'image': ['a', 'b']}, [image('a'), image('b'), text('Same?')]),
        # The line break separates text here, so it stays.
        (
            'One: <image>\nTwo: <image>\n',
            {'image': ['a', 'b']},
            [text('One: '), image('a'), text('\nTwo: '), image('b'), text('\n')],
        ),
        ('Look:\n<image>\nWhat?', {'image': 'a'}, [text('Look:\n'), image('a'), text('What?')]),
        ([text('<image>'), text('What?')], {'image': 'a'}, [image('a'), text('What?')]),
        # Placeholders as parts.
        ([{'type': 'image'}, text('What?')], {'image': 'a'}, [image('a'), text('What?')]),
        ([text('What?'), {'type': 'image', 'image': None, 'text': None}], {'image': 'a'}, [text('What?'), image('a')]),
        ([{'type': 'image'}, text('and <image>')], {'image': ['a', 'b']}, [image('a'), text('and '), image('b')]),
        # Parts that bring their own media.
        ([{'type': 'image', 'image': 'a'}, text('What?')], {}, [image('a'), text('What?')]),
        ([{'type': 'image', 'path': 'a'}, {'type': 'image'}], {'image': 'b'}, [image('a'), image('b')]),
        ([{'type': 'image', 'url': 'data:image/png;base64,QQ=='}], {}, [image('data:image/png;base64,QQ==')]),
        ([{'type': 'image_url', 'image_url': {'url': 'a'}}], {'image': []}, [image('a')]),
        ([{'type': 'image', 'base64': 'QQ=='}], {}, [image('data:image;base64,QQ==')]),
        ([{'type': 'image', 'image': 'a'}], {'image': ['a']}, [image('a')]),
        ([{'type': 'audio', 'audio_url': 'a.wav'}], {}, [{'type': 'audio', 'audio': Media('audio', 'a.wav')}]),
        # No placeholder anywhere: before the first user text.
        ('What?', {'image': ['a', 'b']}, [image('a'), image('b'), text('What?')]),
        ('', {'image': 'a'}, [image('a')]),
    ],
)
def test_content(content: Any, meta: dict, expected: list) -> None:
    assert first(bind_media(asked(content), meta)) == expected


def test_all_kinds_are_placed_by_the_same_rules() -> None:
    meta = {'image': 'i', 'video': ['v'], 'audios': ['a']}
    bound = first(bind_media(asked('<video>then<audio>'), meta))
    kinds = [(part['type'], part[part['type']].source) for part in bound if part['type'] != 'text']
    # The image has no placeholder, so it goes before the first text; the others stand where they were put.
    assert kinds == [('video', 'v'), ('image', 'i'), ('audio', 'a')]


def test_images_in_any_turn_are_filled_in_order() -> None:
    conversation = asked('<image> one', {'role': 'user', 'content': 'two <image>'}, REPLY)
    bound = bind_media(conversation, {'image': ['a', 'b']})
    assert [message['content'] for message in bound] == [
        [image('a'), text(' one')],
        [text('Yes.')],
        [text('two '), image('b')],
        [text('Yes.')],
    ]


def test_media_without_placeholders_skip_the_system_turn() -> None:
    bound = bind_media([{'role': 'system', 'content': 'Be kind.'}, *asked('Hi')], {'image': 'a'})
    assert [message['content'] for message in bound] == [[text('Be kind.')], [image('a'), text('Hi')], [text('Yes.')]]


def test_the_callers_conversation_stays_as_it_was() -> None:
    conversation = asked([{'type': 'image'}, text('<image>')])
    before = copy.deepcopy(conversation)
    first_time = bind_media(conversation, {'image': ['a', 'b']})
    assert conversation == before
    assert bind_media(conversation, {'image': ['a', 'b']}) == first_time


def test_empty_system_turns_and_turns_after_the_last_answer_are_left_out() -> None:
    conversation = [{'role': 'system', 'content': ' '}, *asked('Hi', {'role': 'user', 'content': 'Bye'})]
    assert bind_media(conversation, {}) == [{'role': 'user', 'content': [text('Hi')]}, BOUND_REPLY]


def test_prompts_need_no_answer_but_must_not_end_with_one() -> None:
    assert bind_media([{'role': 'user', 'content': 'Hi'}], {}, needs_reply=False) == [
        {'role': 'user', 'content': [text('Hi')]}
    ]
    with pytest.raises(SampleError, match='nothing left to answer'):
        bind_media(asked('Hi'), {}, needs_reply=False)


def test_an_answer_may_be_an_image() -> None:
    conversation = [{'role': 'user', 'content': 'Draw.'}, {'role': 'assistant', 'content': [{'type': 'image'}]}]
    assert bind_media(conversation, {'image': 'a'})[1]['content'] == [image('a')]


def test_folders_and_options_reach_the_media() -> None:
    meta = {'image': ['a.png', '/abs/b.png', {'bytes': None, 'path': 'c.png'}, {'bytes': b'x', 'path': 'd.png'}]}
    bound = bind_media(asked('Hi'), meta, {'image': '/data'}, options={'image': {'max_pixels': 4}})
    media = [part['image'] for part in first(bound) if part['type'] == 'image']
    assert [item.source for item in media] == [
        '/data/a.png',
        '/abs/b.png',
        '/data/c.png',
        {'bytes': b'x', 'path': 'd.png'},
    ]
    assert all(item.options == {'max_pixels': 4} for item in media)


def test_parts_bring_options_of_their_own_with_or_without_the_medium() -> None:
    options = {'video': {'num_frames': 8, 'fps': 2.0}, 'audio': {'max_seconds': 30}}
    content = [
        {'type': 'video', 'video': 'a', 'nframes': 3, 'max_pixels': 99, 'fps': None},
        {'type': 'video', 'fps': 1.0},
        {'type': 'audio', 'audio': [0.0, 0.1], 'sampling_rate': 8000, 'max_seconds': 2.5},
        {'type': 'audio', 'max_seconds': 5},
        {'type': 'video'},
    ]
    meta = {'videos': ['b', Media('video', 'c', {'num_frames': 1})], 'audio': 'd'}
    media = [part[part['type']] for part in first(bind_media(asked(content), meta, options=options))]
    assert [(item.source, dict(item.options)) for item in media] == [
        ('a', {'num_frames': 3, 'max_frame_pixels': 99, 'fps': 2.0}),
        ('b', {'fps': 1.0}),
        ([0.0, 0.1], {'max_seconds': 2.5, 'sampling_rate': 8000}),
        ('d', {'max_seconds': 5}),
        ('c', {'num_frames': 1, 'fps': 2.0}),
    ]


def test_placeholders_may_name_the_number_of_their_medium() -> None:
    content = [{'type': 'image', 'index': 1, 'text': None}, text('and'), {'type': 'image', 'index': 0}]
    assert first(bind_media(asked(content), {'images': ['a', 'b']})) == [image('b'), text('and'), image('a')]


@pytest.mark.parametrize(
    ('key', 'value', 'weight'),
    [
        ('weight', 0, 0.0),
        ('weight', 0.25, 0.25),
        ('weight', 2, 2.0),
        ('loss', False, 0.0),
        ('loss', 0.5, 0.5),
        ('train', False, 0.0),
    ],
)
def test_a_turn_brings_the_weight_of_its_tokens(key: str, value: Any, weight: float) -> None:
    bound = bind_media([{'role': 'user', 'content': 'Hi'}, {**REPLY, key: value}], {})
    assert bound[1] == {**BOUND_REPLY, 'weight': weight}


@pytest.mark.parametrize('key', ['weight', 'loss', 'train'])
@pytest.mark.parametrize('value', [None, 1, True])
def test_a_turn_that_counts_once_is_like_one_without_a_weight(key: str, value: Any) -> None:
    assert bind_media([{'role': 'user', 'content': 'Hi', key: value}, {**REPLY, key: value}], {})[1] == BOUND_REPLY


def test_several_weights_of_a_turn_are_multiplied() -> None:
    bound = bind_media([{'role': 'user', 'content': 'Hi'}, {**REPLY, 'weight': 0.5, 'loss': 0.5, 'train': True}], {})
    assert bound[1]['weight'] == 0.25


@pytest.mark.parametrize('empty', [None, '', [], {}, {'bytes': None, 'path': None}])
def test_keys_that_say_nothing_are_no_keys(empty: Any) -> None:
    bound = bind_media([{'role': 'user', 'content': 'Hi', 'id': empty, 'tool_calls': empty, 'image': empty}, REPLY], {})
    assert bound == [{'role': 'user', 'content': [text('Hi')]}, BOUND_REPLY]


@pytest.mark.parametrize(
    ('turn', 'meta', 'expected'),
    [
        ({'content': 'What?', 'images': ['a']}, {}, [image('a'), text('What?')]),
        ({'content': 'What?', 'image': 'a'}, {'image': []}, [image('a'), text('What?')]),
        ({'content': 'See <image>!', 'image': 'a'}, {}, [text('See '), image('a'), text('!')]),
        ({'content': [text('One'), {'type': 'image'}], 'images': ['a']}, {}, [text('One'), image('a')]),
        ({'content': '<image><image>', 'images': ['a', 'b']}, {}, [image('a'), image('b')]),
        ({'content': [{'type': 'image', 'image': 'a'}, text('Hi')], 'images': ['a']}, {}, [image('a'), text('Hi')]),
        ({'content': 'What?', 'images': [{'bytes': None, 'path': None}]}, {}, [text('What?')]),
    ],
)
def test_a_turn_brings_media_of_its_own(turn: dict, meta: dict, expected: list) -> None:
    assert first(bind_media([{'role': 'user', **turn}, REPLY], meta)) == expected


def test_media_of_turns_stand_in_their_turn_and_those_of_the_row_in_the_others() -> None:
    later = {'role': 'user', 'content': 'And this?', 'images': ['c'], 'audios': ['s']}
    bound = bind_media([*asked('<image> one'), later, REPLY], {'images': ['a']})
    assert {part['type'] for part in bound[2]['content'][:2]} == {'audio', 'image'}
    assert bound[0]['content'] == [image('a'), text(' one')] and image('c') in bound[2]['content']


@pytest.mark.parametrize('part', ['image', 'video'])
def test_parts_say_how_many_pixels_and_hints_to_services_change_nothing(part: str) -> None:
    content = [{'type': part, part: 'a', 'min_pixels': 4, 'max_pixels': 9, 'detail': 'high'}, text('Hi')]
    (media,) = (piece[part] for piece in first(bind_media(asked(content), {})) if piece['type'] == part)
    each = 'frame' if part == 'video' else 'image'
    assert dict(media.options) == {f'min_{each}_pixels': 4, f'max_{each}_pixels': 9}
    url = {'type': 'image_url', 'image_url': {'url': 'a', 'detail': 'low'}}
    assert first(bind_media(asked([url]), {})) == [image('a')]


@pytest.mark.parametrize(
    'meta', [{'image': {'bytes': None, 'path': None}}, {'images': [{'bytes': None, 'path': None}]}]
)
def test_a_record_of_nothing_is_no_medium(meta: dict) -> None:
    assert first(bind_media(asked('Hi'), meta)) == [text('Hi')]
    nothing = {'type': 'image', 'image': {'bytes': None, 'path': None}}
    assert first(bind_media(asked([nothing]), {'image': 'a'})) == [image('a')]


BAD = [
    ([], {}, 'the conversation is empty'),
    ([{'role': 'user', 'content': 'Hi'}], {}, 'no assistant turn'),
    ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': ''}], {}, 'turn 1 is an empty answer'),
    ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': ' \n'}], {}, 'turn 1 is an empty answer'),
    ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': []}], {}, 'turn 1 is an empty answer'),
    (asked(''), {}, 'turn 0 is an empty user turn'),
    ([{'role': 'human', 'content': 'Hi'}, REPLY], {}, "unknown role 'human'"),
    ([{'role': 'judge', 'content': 'Hi'}, REPLY], {}, "unknown role 'judge'"),
    ([{'role': None, 'content': 'Hi'}, REPLY], {}, "unknown role 'None'"),
    ([{'from': 'human', 'value': 'Hi'}], {}, "turn 0 has no 'role' and 'content'"),
    (['Hi'], {}, "turn 0 has no 'role' and 'content'"),
    (asked(None), {}, 'has NoneType as content'),
    (asked({'type': 'text', 'text': 'Hi'}), {}, 'has dict as content'),
    (asked([3]), {}, "a part without 'type'"),
    (asked([{'text': 'Hi'}]), {}, "a part without 'type'"),
    (asked([{'type': 'text'}]), {}, "'text' is NoneType"),
    (asked([{'type': 'text', 'text': 'Hi', 'weight': 0}]), {}, "a text part with 'weight', which nothing reads"),
    (asked([{'type': 'tool_use'}]), {}, "unknown type 'tool_use'"),
    (asked([{'type': ['image']}]), {}, "unknown type '['image']'"),
    (
        asked([{'type': 'image', 'image': 'a', 'resized_height': 28, 'crop': 9}]),
        {},
        "image media with 'crop', 'resized_height', which means nothing here. Options of image media are: min_pixels",
    ),
    (asked([{'type': 'video', 'video': 'a', 'video_start': 2}]), {}, "video media with 'video_start'"),
    (asked([{'type': 'audio', 'num_frames': 2}]), {'audio': 'a'}, 'are: max_seconds, sampling_rate'),
    (asked([{'type': 'image_url', 'image_url': {'url': 'a', 'size': 'low'}}]), {}, "image media with 'size'"),
    (asked([{'type': 'image', 'min_pixels': 'few'}]), {'image': 'a'}, 'min_image_pixels of the image should be'),
    (asked('Hi', {'role': 'user', 'content': 'Hi', 'id': 3}, REPLY), {}, "turn 2 (user) has 'id', which nothing reads"),
    ([{'role': 'user', 'content': 'Hi', 'speaker': 'Ann', 'mood': 1}, REPLY], {}, "has 'speaker', 'mood', which"),
    ([{'role': 'user', 'content': 'Hi', 'value': False}, REPLY], {}, "has 'value', which nothing reads"),
    (asked('Hi', {**REPLY, 'weight': -1}), {}, 'turn 2 (assistant) has weight -1; it should be'),
    (asked('Hi', {**REPLY, 'loss': 'no'}), {}, "has loss 'no'; it should be"),
    (asked('Hi', {**REPLY, 'weight': float('nan')}), {}, 'has weight nan; it should be'),
    ([{'role': 'user', 'content': 'Hi', 'image': 'a', 'images': ['b']}, REPLY], {}, "holds both 'image' and 'images'"),
    ([{'role': 'user', 'content': '<image>', 'images': ['a', 'b']}, REPLY], {}, 'its text has 1 image placeholder(s)'),
    (asked([{'type': 'video', 'fps': 'fast'}]), {'video': 'a'}, 'fps of the video should be a number above 0'),
    (asked([{'type': 'audio', 'max_seconds': -1}]), {'audio': 'a'}, 'max_seconds of the audio should be a number'),
    (asked([{'type': 'image', 'index': 1}]), {'image': 'a'}, 'name the indices [1] of 1 image(s)'),
    (asked([{'type': 'image', 'index': 'b'}]), {'image': 'a'}, "'index' is 'b', not a number"),
    (asked('<image>'), {'image': []}, '1 image placeholder(s), but the row has 0 image(s)'),
    (asked('<image>'), {'image': None}, '1 image placeholder(s), but the row has 0 image(s)'),
    (asked([{'type': 'image'}]), {}, '1 image placeholder(s), but the row has 0 image(s)'),
    (asked('<image><image>'), {'image': 'a'}, '2 image placeholder(s), but the row has 1 image(s)'),
    (asked('<image>'), {'image': ['a', 'b', 'c']}, '1 image placeholder(s), but the row has 3 image(s)'),
    (asked('<video>'), {'videos': ['a', 'b']}, '1 video placeholder(s), but the row has 2 video(s)'),
    (asked([{'type': 'image', 'image': 'a'}]), {'image': ['b']}, '0 image placeholder(s), but the row has 1 image(s)'),
    (asked([{'type': 'image', 'image': 'a'}]), {'image': ['a', 'b']}, '0 image placeholder(s), but the row has 2'),
    (asked('Hi'), {'image': 'a', 'images': ['b']}, "both 'image' and 'images'"),
    (asked('Hi'), {'image': ['a', None]}, 'the image is null'),
    (asked('Hi'), {'image': ''}, 'the path of the image is empty'),
    (asked('<image>'), {'image': {'bytes': None, 'path': None}}, '1 image placeholder(s), but the row has 0 image(s)'),
    (asked('Hi'), {'image': 'https://example.org/a.png'}, 'URLs are off'),
    (asked([{'type': 'image', 'url': 'http://example.org/a.png'}]), {}, 'URLs are off'),
    (asked([{'type': 'image', 'image': 's3://bucket/a.png'}]), {}, 'URLs are off'),
    ([REPLY], {'image': 'a'}, 'no user turn to show them in'),
]


@pytest.mark.parametrize(('conversation', 'meta', 'message'), BAD)
def test_bad_conversations_say_what_is_wrong(conversation: list, meta: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        bind_media(conversation, meta)
    assert message in str(caught.value)


def test_without_media_keeps_what_rides_along() -> None:
    assert without_media({'image': 1, 'videos': 2, 'ground_truth': 3, 'better_response': 4}) == {
        'ground_truth': 3,
        'better_response': 4,
    }


CHOSEN = {'image': 'a.png', 'question': 'Q', 'chosen': 'good', 'rejected': 'bad'}


def test_chat_template_binds_each_hook() -> None:
    template = BoundTemplate(make_formatter('RLAIFV'), {'image': '/data'}, {'image': {'max_pixels': 9}})
    shown = {'type': 'image', 'image': Media('image', '/data/a.png', {'max_pixels': 9})}
    prompt = {'role': 'user', 'content': [shown, text('Q')]}
    good, bad = ({'role': 'assistant', 'content': [text(value)]} for value in ('good', 'bad'))
    answers = {'better_response': 'good', 'worse_response': 'bad'}
    assert template.format_supervised_sample(CHOSEN) == ([prompt, good], answers)
    assert template.format_preference_sample(CHOSEN) == ([prompt, good], [prompt, bad], answers)
    assert template.format_prompt_only_sample(CHOSEN) == ([prompt], {})
    other = {**CHOSEN, 'chosen': 'other'}
    assert template.format_unmatched_supervised_sample(CHOSEN, other)[0][1]['content'] == [text('other')]
    assert not template.check_equal(CHOSEN) and template.check_equal({**CHOSEN, 'rejected': 'good'})
    assert template.check_validation(CHOSEN)


def test_the_formatters_own_folder_goes_first() -> None:
    template = BoundTemplate(make_formatter('RLAIFV', {'image_folder': '/own'}), {'image': '/data'})
    assert first(template.format_prompt_only_sample(CHOSEN)[0])[0] == image('/own/a.png')


def test_a_lacking_hook_is_an_error_of_the_run() -> None:
    with pytest.raises(DataError, match='Templates that have it'):
        BoundTemplate(make_formatter('GSM8K')).format_preference_sample({})


def test_half_a_surrogate_pair_costs_its_row_only() -> None:
    with pytest.raises(SampleError, match='surrogate'):
        bind_media(asked('broken \ud800 text'), {}, {})


def test_a_path_with_half_a_surrogate_pair_is_no_medium_and_no_crash() -> None:
    conversation = bind_media(asked([{'type': 'image'}, text('Hi')]), {'image': 'a\ud800.png'}, {})
    with pytest.raises(SampleError):
        decode_conversations([conversation], MediaCache(1000))
