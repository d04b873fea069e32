"""Data that no code reads is not taken for absent: media of turns, and columns of media that nobody mapped."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import DataError
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.unread import looks_like
from tests.datasets.fakes import encode, make_dataset, write_rows

TURNS = [{'role': 'user', 'content': 'What is this?'}, {'role': 'assistant', 'content': 'A digit.'}]


@pytest.mark.parametrize(
    ('value', 'kind'),
    [
        ('0.png', 'image'),
        ('some folder/My picture.JPEG', 'image'),
        ('https://example.org/a.webp?size=3', 'image'),
        ('data:image/png;base64,QQ==', 'image'),
        (b'\x89PNG\r\n', 'image'),
        ({'bytes': b'\xff\xd8\xff\xe0', 'path': None}, 'image'),
        ({'bytes': None, 'path': 'a.png'}, 'image'),
        ([None, 'a.gif'], 'image'),
        ({'photo': {'url': 'a.png'}}, 'image'),
        (Image.new('RGB', (2, 2)), 'image'),
        ('clip.mp4', 'video'),
        ('a.wav', 'audio'),
        (b'RIFF\x00\x00\x00\x00WAVEfmt ', 'audio'),
        ({'array': [0.1], 'sampling_rate': 8000}, 'audio'),
        ('a.png is the name of the file', None),
        ('See\na.png', None),
        ('A digit.', None),
        (7, None),
        (None, None),
        ([], None),
        ({'bytes': None, 'path': None}, None),
    ],
)
def test_what_looks_like_media(value: Any, kind: str | None) -> None:
    assert looks_like(value) == kind


def rows_of(tmp_path: Path, **more: Any) -> str:
    rows = [{'messages': TURNS, **{key: value for key, value in more.items()}} for _ in range(8)]
    return write_rows(tmp_path / 'rows.jsonl', rows)


@pytest.mark.parametrize('streaming', [False, True])
def test_a_picture_column_that_nobody_maps_stops_the_run(tmp_path: Path, streaming: bool) -> None:
    source = rows_of(tmp_path, image_path='0.png', number=3)
    with pytest.raises(DataError) as caught:
        make_dataset(source, 'Messages', streaming=streaming).probe()
    message = str(caught.value)
    assert (
        "gives the pair 'some_pair' no image in its first 8 rows, but column 'image_path', which nobody reads"
        in message
    )
    assert 'Map it with train_template_kwargs {images: image_path}' in message and "'number'" not in message


def test_a_mapped_column_and_one_that_is_said_not_to_be_meant_are_fine(tmp_path: Path) -> None:
    Image.new('RGB', (3, 2)).save(tmp_path / '0.png')
    source = rows_of(tmp_path, image_path='0.png')
    make_dataset(source, 'Messages', template_kwargs={'images': 'image_path'}).probe()
    make_dataset(source, 'Messages', template_kwargs={'images': ''}).probe()
    # Of a kind that the pair does not take, or in a run about texts.
    make_dataset(rows_of(tmp_path, sound='0.wav'), 'Messages').probe()
    make_dataset(source, 'Messages', allowed=frozenset()).probe()


def test_a_template_without_such_an_option_is_told_otherwise(tmp_path: Path) -> None:
    rows = [{'prompt': 'a', 'response_0': 'b', 'response_1': 'c', 'better_response_id': 0, 'photo': 'a.png'}] * 3
    with pytest.raises(DataError, match="column 'photo', which nobody reads.*Choose a template that reads 'photo'"):
        make_dataset(write_rows(tmp_path / 'a.jsonl', rows), 'PKUSafeRLHF').probe()


def test_rows_that_hold_media_only_now_and_then_are_fine(tmp_path: Path) -> None:
    Image.new('RGB', (3, 2)).save(tmp_path / '0.png')
    rows = [{'messages': TURNS, 'images': None, 'thumbnail': '0.png'}] * 7 + [{'messages': TURNS, 'images': ['0.png']}]
    make_dataset(write_rows(tmp_path / 'rows.jsonl', rows), 'Messages').probe()


def test_a_column_of_media_that_is_empty_in_the_first_rows_is_mapped_all_the_same(tmp_path: Path) -> None:
    """What only looks like media beside it, such as the name of a row, is not what was meant."""
    rows = [{'messages': TURNS, 'images': None, 'id': '000.jpg'}] * 9
    make_dataset(write_rows(tmp_path / 'a.jsonl', rows), 'Messages').probe()
    rows = [{'messages': TURNS, 'photo': None, 'id': '000.jpg'}] * 9
    source = write_rows(tmp_path / 'b.jsonl', rows)
    make_dataset(source, 'Messages', template_kwargs={'images': 'photo'}).probe()
    with pytest.raises(DataError, match="column 'id', which nobody reads"):
        make_dataset(source, 'Messages').probe()


def test_a_media_pair_without_any_media_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = rows_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        make_dataset(source, 'Messages', allowed=frozenset()).probe()
        assert caplog.text == ''
        make_dataset(source, 'Messages').probe()
    assert "the first rows hold no image: the pair 'some_pair' will train on their text alone" in caplog.text
    caplog.clear()
    # An environment may show some.
    dataset = make_dataset(source, 'Messages')
    acting = [replace(source, keeps_columns=True) for source in dataset.sources]
    ExampleDataset(acting, dataset.task, 'some_pair', frozenset({'image'})).probe()
    assert caplog.text == ''
    Image.new('RGB', (3, 2)).save(tmp_path / '0.png')
    shown = write_rows(tmp_path / 'shown.jsonl', [{'messages': TURNS, 'images': ['0.png']}])
    with caplog.at_level(logging.WARNING):
        make_dataset([source, shown], 'Messages').probe()
    assert caplog.text == '', 'one source of a mixture may be text'


@pytest.mark.parametrize(
    ('template', 'kwargs'),
    [('Captioning', {}), ('Instruction', {'prompt': 'text', 'response': 'path'})],
    ids=['a picture that is asked about', 'the name of one for an answer'],
)
def test_answers_that_should_be_media_and_are_text_are_told_before_training(
    tmp_path: Path, template: str, kwargs: dict[str, str]
) -> None:
    """Such rows would train, in silence, what nobody meant."""
    Image.new('RGB', (3, 2)).save(tmp_path / '0.png')
    rows = write_rows(tmp_path / 'rows.jsonl', [{'image': '0.png', 'path': '0.png', 'text': 'A dot.'}])
    image = frozenset({'image'})
    make_dataset(rows, template, template_kwargs=kwargs).probe()
    with pytest.raises(DataError, match=r'answers that are one image, .*train_template_kwargs \{answers: image\}'):
        make_dataset(rows, template, template_kwargs=kwargs, answers=image).probe()
    drawn = {'prompt': 'text', 'response': 'image', 'answers': 'image'}
    make_dataset(rows, 'Instruction', template_kwargs=drawn, answers=image).probe()


@pytest.mark.parametrize('template', ['Messages', 'ShareGPT', 'Any2Any_Conv'])
def test_media_of_a_turn_reach_the_model(tmp_path: Path, template: str) -> None:
    Image.new('RGB', (3, 2)).save(tmp_path / '0.png')
    keys = ('from', 'value') if template == 'ShareGPT' else ('role', 'content')
    turns = [dict(zip(keys, turn.values(), strict=True)) for turn in TURNS]
    turns[0]['image' if template == 'Any2Any_Conv' else 'images'] = '0.png' if template == 'Any2Any_Conv' else ['0.png']
    dataset = make_dataset(write_rows(tmp_path / 'rows.jsonl', [{'conversations': turns}]), template)
    example = dataset[0]
    assert ''.join(map(chr, example.responses[0].ids.tolist())) == 'image(3, 2)|What is this?|A digit.'


@pytest.mark.parametrize('template', ['Messages', 'ShareGPT', 'Any2Any_Conv', 'LMMS'])
def test_other_keys_of_a_turn_are_refused_by_name_whatever_the_template(tmp_path: Path, template: str) -> None:
    keys = ('from', 'value') if template in ('ShareGPT', 'LMMS') else ('role', 'content')
    turns = [{**dict(zip(keys, turn.values(), strict=True)), 'mood': None} for turn in TURNS]
    names = {'roles': {}} if template == 'ShareGPT' else {}
    if template == 'LMMS':
        names = {'user_key': 'user', 'assistant_key': 'assistant'}
    source = write_rows(tmp_path / 'rows.jsonl', [{'conversations': turns}])
    assert ''.join(map(chr, make_dataset(source, template, template_kwargs=names)[0].responses[0].ids.tolist()))
    turns[1]['mood'] = 'glad'
    skipped = make_dataset(
        write_rows(tmp_path / 'rows.jsonl', [{'conversations': turns}]), template, template_kwargs=names
    )[0]
    assert "'mood', which nothing reads" in skipped.reason and json.dumps(skipped.reason)


def test_a_picture_column_that_is_only_handed_to_rewards_is_not_read(tmp_path: Path) -> None:
    rows = [{'prompt': 'What is this?', 'answer': 'A digit.', 'photo': '0.png'}] * 3
    (source,) = load_sources(
        datasets=write_rows(tmp_path / 'rows.jsonl', rows), template='Prompts', template_kwargs={'keep_columns': True}
    )
    task = PromptTask(lambda messages: encode(messages).responses[0], longest=100)
    with pytest.raises(DataError, match="column 'photo', which nobody reads"):
        ExampleDataset([source], task, 'some_pair', frozenset({'image'})).probe()
    example = ExampleDataset([source], task, 'some_pair', frozenset())[0]
    assert example.meta['photo'] == '0.png' and example.meta['ground_truth'] == 'A digit.'
