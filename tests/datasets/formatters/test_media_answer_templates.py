"""Each hook of each template with media in answers, on a row in the dataset's own columns, gives this conversation.

`said` shows a conversation in normal form: texts as they are, media by what the row holds for them.
"""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Conversation
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.formatters.base import BaseFormatter, usable_templates
from align_anything.datasets.template_registry import make_formatter

OWN = (
    'align_anything.datasets.formatters.anygpt',
    'align_anything.datasets.formatters.text_to_audio',
    'align_anything.datasets.formatters.text_to_image',
    'align_anything.datasets.formatters.text_to_video',
    'align_anything.datasets.formatters.texts_and_images',
)

PICKAPIC = {'caption': 'A fox', 'jpg_0': b'zero', 'jpg_1': b'one', 'label_0': 0.0, 'label_1': 1.0}
SORA = {
    'prompt_text': 'A fox',
    'video_0': {'video_path': '0.mp4'},
    'video_1': {'video_path': '1.mp4'},
    'helpfulness': 'video_1',
    'harmlessness': 'video_0',
    'sub_preferences': {'aesthetics': 'video_0', 'correctness': None},
}
JUDGED = {
    **SORA,
    'video_0': {'video_path': '0.mp4', 'is_safe': True},
    'video_1': {'video_path': '1.mp4', 'is_safe': False},
}
LABELLED = {
    'prompt_text': 'A fox',
    'video_path': '0.mp4',
    'is_safe': False,
    'video_labels': {'violence': True, 'porn': False},
}
CLOTHO = {'file_name': 'a.wav', **{f'caption_{number}': 'Rain' for number in range(1, 6)}}
T2A = {'prompt': 'Rain', 'response_1': '1.wav', 'response_2': '2.wav', 'overall_audio': 2}
TI2TI = {'input_text': 'Repaint it', 'input_image': 'in.png', 'output_text': 'Here', 'output_image': ['a.png', 'b.png']}
PAIR = {
    'input_text': 'Repaint it',
    'input_image': 'in.png',
    'better_text': 'Here',
    'better_img': 'good.png',
    'worse_text': '',
    'worse_img': 'bad.png',
}
ANYTHING = {'question': 'Repaint it', 'image_url': 'in.png', 'response': 'Here', 'output_image_url': 'out.png'}
FEEDBACK = {
    'question': 'Repaint it',
    'image_url': 'in.png',
    'response_1': 'Here',
    'output_image_url_1': '1.png',
    'response_2': 'Or <image> so',
    'output_image_url_2': '2.png',
    'feedback': 'The first.',
}
SPAVL = {'image': 'in.png', 'question': 'What?', 'chosen': 'A fox.', 'rejected': 'A dog.'}
EMILIA = {'json': {'text': 'Hello', 'speaker': 'EN_1'}, 'mp3': {'bytes': b'mp3', 'path': None}}
SPEECH_CODES = {'codes': [[1, 1, 7]]}
ANYGPT_TURNS = [
    {'role': 'user', 'message': '<sosp><🗣️1><🗣️1><🗣7><eosp> Answer'},
    {'role': 'assistant', 'message': 'Fine <soim><👀8191><👀0><eoim><sosp><🗣️2><eosp> '},
]
MUSIC = {'text': 'Jazz', 'music': '<somu><🎶166><🎶3979><🎶6115><🎶7914><🎶0><🎶2048><🎶4096><🎶6144><eomu>'}
MUSIC_CODES = {'codes': [[166, 0], [3979 - 2048, 0], [6115 - 4096, 0], [7914 - 6144, 0]]}

Said = list[tuple[str, list[Any]]]


def asked(*parts: Any) -> tuple[str, list[Any]]:
    return 'user', list(parts)


def answer(*parts: Any) -> tuple[str, list[Any]]:
    return 'assistant', list(parts)


SUPERVISED: list[tuple[str, dict, Said]] = [
    ('DiffusionDB', {'prompt': 'A fox', 'image': 'a.png'}, [asked('A fox'), answer('a.png')]),
    ('DiffusionDBCanny', {'text': 'A fox', 'image': 'a.png'}, [asked('A fox'), answer('a.png')]),
    ('Pickapic', PICKAPIC, [asked('A fox'), answer(b'one')]),
    ('PICKAPIC_TI2TI', PICKAPIC, [asked('Draw this: A fox'), answer(b'one')]),
    (
        'ImageRewardDB',
        {'prompt': 'A fox', 'img_better': 'a.png', 'img_worse': 'b.png'},
        [asked('A fox'), answer('a.png')],
    ),
    (
        'HPDv2',
        {'prompt': 'A fox', 'file_path': ['a.png', 'b.png'], 'human_preference': [0, 1]},
        [asked('A fox'), answer('b.png')],
    ),
    (
        'HPDv2',
        {'prompt': 'A fox', 'image_path': ['a.png', 'b.png', 'c.png'], 'rank': [2, 1, 3]},
        [asked('A fox'), answer('b.png')],
    ),
    ('HPDv3', {'prompt': 'A fox', 'path1': 'a.png', 'path2': 'b.png'}, [asked('A fox'), answer('a.png')]),
    ('WavCaps', {'answer': 'Rain', 'context': {'bytes': b'wav', 'path': None}}, [asked('Rain'), answer(b'wav')]),
    ('AA_T2A', T2A, [asked('Rain'), answer('2.wav')]),
    (
        'SOMOS',
        {'prompt': 'Hello', 'better_data_path': 'a.wav', 'worse_data_path': 'b.wav'},
        [asked('Hello'), answer('a.wav')],
    ),
    ('TTS', {'text': 'Hello', 'audio': 'a.wav', 'speaker_id': 7}, [asked('Hello'), answer('a.wav')]),
    ('TTS', {'text_normalized': 'Hello', 'audio': 'a.wav'}, [asked('Hello'), answer('a.wav')]),
    ('TTS', EMILIA, [asked('Hello'), answer(b'mp3')]),
    ('Webvid', {'caption': 'A fox', 'video_path': 'a.mp4'}, [asked('A fox'), answer('a.mp4')]),
    ('Webvid', {'name': 'A fox', 'videoid': 7, 'page_dir': '000'}, [asked('A fox'), answer('000/7.mp4')]),
    ('Webvid', {'name': 'A fox', 'videoid': '7', 'page_dir': None}, [asked('A fox'), answer('7.mp4')]),
    ('WavCaps', {'caption': 'Rain', 'id': '7', 'duration': 3.0}, [asked('Rain'), answer('7.flac')]),
    ('WavCaps', {'caption': 'Rain', 'id': 'Yabc.wav'}, [asked('Rain'), answer('Yabc.wav')]),
    ('Clotho', CLOTHO, [asked('Rain'), answer('a.wav')]),
    ('Clotho', {'audio': 'a.wav', 'captions': ['Rain', 'Rain']}, [asked('Rain'), answer('a.wav')]),
    ('SafeSora', SORA, [asked('A fox'), answer('1.mp4')]),
    ('SafeSora_Cost', JUDGED, [asked('A fox'), answer('0.mp4')]),
    ('SafeSora_Label', LABELLED, [asked('A fox'), answer('0.mp4')]),
    ('ti2ti', TI2TI, [asked('in.png', 'Repaint it'), answer('Here', 'a.png', 'b.png')]),
    ('Chameleon', TI2TI, [asked('in.png', 'Repaint it'), answer('Here', 'a.png', 'b.png')]),
    ('Any2Any', {'input_text': 'A fox', 'output_image': 'a.png'}, [asked('A fox'), answer('a.png')]),
    (
        'Any2Any',
        {'input_text': 'What?', 'input_image': 'a.png', 'output_text': 'A fox', 'output_image': None},
        [asked('a.png', 'What?'), answer('A fox')],
    ),
    ('ANYTHING_TI2TI', ANYTHING, [asked('in.png', 'Repaint it'), answer('Here', 'out.png')]),
    ('ti2ti_preference', PAIR, [asked('in.png', 'Repaint it'), answer('Here', 'good.png')]),
    ('Chameleon_preference', PAIR, [asked('in.png', 'Repaint it'), answer('Here', 'good.png')]),
    ('spavl_ti2ti', SPAVL, [asked('in.png', 'What?'), answer('A fox.')]),
    (
        'AA_textfeedback',
        FEEDBACK,
        [
            asked(
                'Question: ',
                'in.png',
                'Repaint it\nAnswer 1: ',
                '1.png',
                'Here\nAnswer 2: Or ',
                '2.png',
                ' so\nCompare the two answers and say which one is better.',
            ),
            answer('The first.'),
        ],
    ),
    (
        'AnyGPT_Conv',
        {'conversation': [ANYGPT_TURNS]},
        [
            asked(SPEECH_CODES, ' Answer'),
            answer('Fine ', {'codes': [[[8191, 0]]]}, {'codes': [[2]]}),
        ],
    ),
    ('AnyGPT_Conv', {'conversation': ANYGPT_TURNS[1:]}, [answer('Fine ', {'codes': [[[8191, 0]]]}, {'codes': [[2]]})]),
    ('AnyGPT_Pair', MUSIC, [asked('Jazz'), answer(MUSIC_CODES)]),
]

PREFERENCE: list[tuple[str, dict, list, list]] = [
    ('Pickapic', PICKAPIC, [b'one'], [b'zero']),
    ('Pickapic', {**PICKAPIC, 'label_0': '1', 'label_1': '0'}, [b'zero'], [b'one']),
    ('PICKAPIC_TI2TI', PICKAPIC, [b'one'], [b'zero']),
    ('ImageRewardDB', {'prompt': 'A fox', 'img_better': 'a.png', 'img_worse': 'b.png'}, ['a.png'], ['b.png']),
    (
        'HPDv2',
        {'prompt': 'A fox', 'file_path': ['a.png', 'b.png'], 'human_preference': [1, 0]},
        ['a.png'],
        ['b.png'],
    ),
    (
        'HPDv2',
        {'prompt': 'A fox', 'image_path': ['a.png', 'b.png', 'c.png'], 'rank': [2, 1, 3]},
        ['b.png'],
        ['c.png'],
    ),
    ('HPDv3', {'prompt': 'A fox', 'path1': 'a.png', 'path2': 'b.png'}, ['a.png'], ['b.png']),
    ('AA_T2A', T2A, ['2.wav'], ['1.wav']),
    ('SOMOS', {'prompt': 'Hi', 'better_data_path': 'a.wav', 'worse_data_path': 'b.wav'}, ['a.wav'], ['b.wav']),
    ('SafeSora', SORA, ['1.mp4'], ['0.mp4']),
    ('SafeSora_Cost', JUDGED, ['1.mp4'], ['0.mp4']),
    ('ti2ti_preference', PAIR, ['Here', 'good.png'], ['bad.png']),
    ('Chameleon_preference', {**PAIR, 'worse_text': 'No', 'worse_img': None}, ['Here', 'good.png'], ['No']),
    ('spavl_ti2ti', SPAVL, ['A fox.'], ['A dog.']),
]


def said(conversation: Conversation) -> Said:
    """The turns with what the row holds for each text and medium; of a record of a feature its bytes."""
    shown = []
    for message in conversation:
        parts = [part['text'] if part['type'] == 'text' else part[part['type']].source for part in message['content']]
        shown.append((message['role'], [part.get('bytes', part) if type(part) is dict else part for part in parts]))
    return shown


def bound(name: str, **options: Any) -> BoundTemplate:
    return BoundTemplate(make_formatter(name, options))


def own_templates() -> dict[str, type[BaseFormatter]]:
    return {name: template for name, template in usable_templates().items() if template.__module__ in OWN}


def identified(rows: list[tuple]) -> list[Any]:
    return [pytest.param(*row, id=f'{number}-{row[0]}') for number, row in enumerate(rows)]


@pytest.mark.parametrize(('name', 'row', 'expected'), identified(SUPERVISED))
def test_supervised(name: str, row: dict, expected: Said) -> None:
    conversation, meta = bound(name).format_supervised_sample(row)
    assert said(conversation) == expected
    assert not meta.keys() & {'image', 'images', 'audio', 'video'}


@pytest.mark.parametrize(('name', 'row', 'better', 'worse'), identified(PREFERENCE))
def test_preference(name: str, row: dict, better: list, worse: list) -> None:
    template = bound(name)
    assert template.check_validation(row) and not template.check_equal(row)
    *conversations, _ = template.format_preference_sample(row)
    assert [said(conversation)[-1] for conversation in conversations] == [answer(*better), answer(*worse)]
    first, second = (said(conversation)[:-1] for conversation in conversations)
    assert first == second == said(template.format_prompt_only_sample(row)[0])


@pytest.mark.parametrize(('name', 'row', 'expected'), identified([row for row in SUPERVISED if len(row[2]) > 1]))
def test_prompts_leave_the_answer_and_its_media_out(name: str, row: dict, expected: Said) -> None:
    conversation, meta = bound(name).format_prompt_only_sample(row)
    assert said(conversation) == expected[:-1]
    assert 'ground_truth' not in meta


@pytest.mark.parametrize(('name', 'row', 'expected'), identified([row for row in SUPERVISED if len(row[2]) > 1]))
def test_unmatched_takes_the_answer_of_another_row(name: str, row: dict, expected: Said) -> None:
    other = {
        key: 'Other' if value in ('A fox', 'Rain', 'Hello', 'Repaint it', 'What?') else value
        for key, value in row.items()
    }
    conversation, _ = bound(name).format_unmatched_supervised_sample(other, row)
    assert said(conversation) == [*said(bound(name).format_prompt_only_sample(other)[0]), expected[-1]]


def test_every_template_with_media_in_answers_is_in_the_tables() -> None:
    templates = own_templates()
    assert templates.keys() == {row[0] for row in SUPERVISED}
    with_preference = {name for name, template in templates.items() if 'format_preference_sample' in template.hooks()}
    assert with_preference == {row[0] for row in PREFERENCE}


def test_ties_and_other_answers_without_a_preference_are_filtered() -> None:
    tie = {**PICKAPIC, 'label_0': 0.5, 'label_1': 0.5}
    assert not bound('Pickapic').check_validation(tie)
    assert bound('Pickapic').check_validation({'caption': 'A fox'}), 'prompts alone are no ties'
    with pytest.raises(SampleError, match='prefers neither'):
        bound('Pickapic').format_preference_sample(tie)
    assert not bound('AA_T2A').check_validation({**T2A, 'overall_audio': 0})
    assert not bound('SafeSora').check_validation({**SORA, 'helpfulness': None})
    same = {'prompt': 'A fox', 'file_path': ['a.png', 'b.png'], 'human_preference': [1, 1]}
    assert not bound('HPDv2').check_validation(same)


def test_ties_are_kept_as_soft_labels_where_they_are_asked_for() -> None:
    tie, template = {**PICKAPIC, 'label_0': 0.5, 'label_1': 0.5}, bound('Pickapic', keep_ties=True)
    assert template.check_validation(tie)
    better, worse, meta = template.format_preference_sample(tie)
    assert (said(better)[-1], said(worse)[-1], meta['soft_label']) == (answer(b'zero'), answer(b'one'), 0.5)
    assert 'soft_label' not in template.format_preference_sample(PICKAPIC)[2]
    assert not template.check_validation({**tie, 'label_1': 0.2}), 'neither a choice nor a tie'


def test_pairs_without_a_label_are_filtered() -> None:
    assert not bound('Pickapic').check_validation({**PICKAPIC, 'has_label': False})
    assert bound('Pickapic').check_validation({**PICKAPIC, 'has_label': 'True'})


@pytest.mark.parametrize('criterion', ['harmlessness', 'aesthetics'])
def test_the_criterion_of_safe_sora_is_an_option(criterion: str) -> None:
    template = bound('SafeSora', criterion=criterion)
    better, _, _ = template.format_preference_sample(SORA)
    assert said(better)[-1] == answer('0.mp4') and template.check_validation(SORA)
    assert not bound('SafeSora', criterion='correctness').check_validation(SORA)


def test_safe_sora_says_of_videos_whether_they_are_safe() -> None:
    *_, meta = bound('SafeSora_Cost').format_preference_sample(JUDGED)
    assert meta == {'is_better_safe': False, 'is_worse_safe': True}
    with pytest.raises(SampleError, match="no column 'is_safe'"):
        bound('SafeSora_Cost').format_preference_sample(SORA)
    _, meta = bound('SafeSora_Label').format_supervised_sample(LABELLED)
    assert meta == {'label': False, 'harms': ['violence']}
    unsaid = {**LABELLED, 'is_safe': None, 'video_labels': {'violence': False, 'racism': None}}
    assert bound('SafeSora_Label').format_supervised_sample(unsaid)[1] == {'label': True, 'harms': []}


def test_a_clip_of_clotho_is_asked_for_by_one_of_its_captions() -> None:
    rows = [{'audio': 'a.wav', 'captions': [f'{row} {number}' for number in range(5)]} for row in range(20)]
    chosen = [said(bound('Clotho').format_supervised_sample(row)[0])[0][1][0] for row in rows]
    assert chosen == [said(bound('Clotho').format_supervised_sample(row)[0])[0][1][0] for row in rows]
    assert {text[-1] for text in chosen} == set('01234')
    with pytest.raises(SampleError, match='an empty list'):
        bound('Clotho').format_supervised_sample({'audio': 'a.wav', 'captions': []})


def test_a_voice_is_named_before_what_it_says() -> None:
    prompt, _ = bound('TTS', voice='speaker', request='Say as ').format_prompt_only_sample(EMILIA)
    assert said(prompt) == [asked('Say as EN_1: Hello')]


def test_anygpt_pairs_go_in_either_direction() -> None:
    rows = [{'text': f'Jazz {number}', 'speech': f'<sosp><🗣️{number}><eosp>'} for number in range(20)]
    backwards, _ = bound('AnyGPT_Pair', direction='to_text', question='Say it.').format_supervised_sample(rows[3])
    assert said(backwards) == [asked({'codes': [[3]]}, 'Say it.'), answer('Jazz 3')]
    _, meta = bound('AnyGPT_Pair', direction='to_text').format_prompt_only_sample(rows[3])
    assert meta['ground_truth'] == 'Jazz 3'
    both = bound('AnyGPT_Pair', direction='both')
    firsts = [[said(both.format_supervised_sample(row)[0])[0][1][0] for row in rows] for _ in range(2)]
    assert firsts[0] == firsts[1]
    assert 4 < sum(isinstance(first, str) for first in firsts[0]) < 16
    with pytest.raises(DataError, match="Did you mean 'to_text'"):
        bound('AnyGPT_Pair', direction='to_texts').format_supervised_sample(rows[0])


def talk(message: str) -> dict[str, Any]:
    return {'conversation': [[{'role': 'user', 'message': 'Hi'}, {'role': 'assistant', 'message': message}]]}


@pytest.mark.parametrize(
    ('name', 'row', 'message'),
    [
        ('AnyGPT_Conv', talk('<soim><👀1>'), "'<soim>' without its other end"),
        ('AnyGPT_Conv', talk('<soim><👀1><eosp>'), 'without its other end'),
        ('AnyGPT_Conv', talk('<sosp><👀1><eosp>'), 'should hold codes like'),
        ('AnyGPT_Conv', talk('<sosp><eosp>'), 'should hold codes like'),
        ('AnyGPT_Conv', talk('<sosp><🗣️1024><eosp>'), 'code 1024 of <sosp> is not from book 0 of 1 with 1024'),
        ('AnyGPT_Conv', talk('<somu><🎶1><🎶2><🎶3><🎶4><eomu>'), 'code 2 of <somu> is not from book 1 of 4'),
        ('AnyGPT_Conv', talk('<somu><🎶1><eomu>'), 'has 1 codes, which 4 books do not share'),
        ('AnyGPT_Conv', {'conversation': [[], []]}, 'holds 2 conversations'),
        ('AnyGPT_Conv', {'conversation': ['Hi']}, 'turn 0 should be a record'),
        ('AnyGPT_Pair', {'text': 'Jazz'}, "no column 'image' or 'speech'"),
        ('AnyGPT_Pair', {'text': 'Jazz', 'image': 'a', 'music': 'b'}, 'several media: image, music'),
        ('AnyGPT_Pair', {'text': 'Jazz', 'image': '<sosp><🗣️1><eosp>'}, 'should hold one run of tokens'),
        ('DiffusionDB', {'prompt': 'A fox', 'image': ['a.png', 'b.png']}, 'should be one image but there are 2'),
        ('DiffusionDB', {'prompt': 'A fox'}, "no column 'image'"),
        ('ti2ti', {**TI2TI, 'output_text': None, 'output_image': []}, 'assistant turn has neither a text nor image'),
        ('ti2ti', {'input_text': 'A', 'input_image': None}, "no column 'output_text' or 'output_image'"),
        ('TTS', {'json': 'no', 'mp3': 'a'}, "column 'json' should be a record but is str"),
        ('SafeSora', {**SORA, 'helpfulness': 'video_2'}, "should be one of ['video_0', 'video_1'] but is 'video_2'"),
    ],
)
def test_bad_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        bound(name).format_supervised_sample(row)
    assert message in str(caught.value)


def test_images_stand_where_the_text_of_their_turn_says() -> None:
    row = {**TI2TI, 'output_text': 'First <image> then <image>, done', 'input_text': 'Repaint <image> now'}
    conversation, _ = bound('ti2ti').format_supervised_sample(row)
    assert said(conversation) == [
        asked('Repaint ', 'in.png', ' now'),
        answer('First ', 'a.png', ' then ', 'b.png', ', done'),
    ]
    with pytest.raises(SampleError, match=r'its text has 2 image placeholder\(s\)'):
        bound('ti2ti').format_supervised_sample({**row, 'output_image': 'a.png'})
