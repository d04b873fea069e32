"""Rows whose answers are media are read without a template where their columns are known."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import DataError
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.recognition import recognised
from align_anything.datasets.rows import InOrder
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.template_registry import make_formatter
from tests.datasets.clips import sound, tone
from tests.datasets.fakes import write_rows


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (8, 6), 'red').save(buffer, 'PNG')
    return buffer.getvalue()


class Listed:
    """Rows of a list."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def row_name(self, index: int) -> str:
        return f'row {index}'


WAV = {'bytes': sound(tone(0.2)), 'path': None}
SORA = {'prompt_text': 'A fox', 'video_0': {'video_path': '0.mp4'}, 'video_1': {'video_path': '1.mp4'}}
PICK = {'caption': 'A fox', 'jpg_0': png(), 'jpg_1': png(), 'label_0': 0.0, 'label_1': 1.0}
EDIT = {'edit_prompt': 'Bluer', 'input_image': 'a.png', 'edited_image': 'b.png'}
CASES = [
    ({'image': 'a.png', 'text': 'A fox'}, 'image', 'Instruction {answers: image}'),
    (
        {'image': {'bytes': png(), 'path': None}, 'caption': 'A fox', 'width': 8},
        'image',
        'Instruction {answers: image}',
    ),
    ({'image': 'a.png', 'prompt': 'A fox', 'seed': 3, 'cfg': 7.0}, 'image', 'Instruction {answers: image}'),
    ({'image': {'codes': [[1]]}, 'text': 'A fox'}, 'image', 'Instruction {answers: image}'),
    ({'video': 'a.mp4', 'caption': 'A fox', 'aesthetic score': 5.1}, 'video', 'Instruction {answers: video}'),
    ({'audio': WAV, 'caption': 'Rain', 'youtube_id': 'x', 'start_time': 3}, 'audio', 'Instruction {answers: audio}'),
    ({'prompt': 'Rain', 'chosen': WAV, 'rejected': WAV, 'strategy': 's'}, 'audio', 'Preference {answers: audio}'),
    ({'prompt': 'A fox', 'better_image': 'a.png', 'worse_image': 'b.png'}, 'image', 'Preference {answers: image}'),
    (PICK, 'image', 'Pickapic'),
    ({'prompt': 'A fox', 'img_better': 'a.png', 'img_worse': 'b.png'}, 'image', 'ImageRewardDB'),
    ({'prompt': 'A fox', 'image_path': ['a.png', 'b.png'], 'rank': [1, 2], 'raw_annotations': []}, 'image', 'HPDv2'),
    ({**SORA, 'helpfulness': 'video_0'}, 'video', 'SafeSora'),
    ({'videoid': '7', 'name': 'A fox', 'page_dir': '000', 'contentUrl': 'https://a/b.mp4'}, 'video', 'Webvid'),
    ({'file_name': 'a.wav', 'caption_1': 'Rain', 'caption_2': 'Wet'}, 'audio', 'Clotho'),
    ({'id': '7', 'caption': 'Rain', 'duration': 3.5, 'title': 'x'}, 'audio', 'WavCaps'),
    ({'id': '7', 'caption': 'Rain', 'duration': 3.5, 'audio': WAV}, 'audio', 'Instruction {answers: audio}'),
    (EDIT, 'image', 'Instruction {answers: image, prompt: edit_prompt, images: input_image, response: edited_image}'),
    (
        {'image': 'b.png', 'cond_image': 'a.png', 'prompt': 'Bluer'},
        'image',
        'Instruction {answers: image, prompt: prompt, images: cond_image, response: image}',
    ),
    (
        {'source_img': 'a.png', 'mask_img': 'm.png', 'instruction': 'Bluer', 'target_img': 'b.png', 'turn_index': 1},
        'image',
        'Instruction {answers: image, prompt: instruction, images: source_img, response: target_img}',
    ),
    (
        {'source': 'a.png', 'instruction': 'Bluer', 'target': 'b.png'},
        'image',
        'Instruction {answers: image, prompt: instruction, images: source, response: target}',
    ),
    (
        {'prompt': 'Two foxes', 'tag': 'counting', 'include': []},
        'image',
        'Prompts {prompt: prompt, keep_columns: True}',
    ),
    ({'Prompt': 'A fox', 'Category': 'Animals', 'Note': None}, 'image', 'Prompts {prompt: Prompt, keep_columns: True}'),
    ({'prompt_en': 'A fox', 'dimension': ['colour']}, 'video', 'Prompts {prompt: prompt_en, keep_columns: True}'),
]


@pytest.mark.parametrize(('row', 'kind', 'expected'), CASES, ids=[str(list(case[0]))[:50] for case in CASES])
def test_columns_tell_the_template_which_reads_them(row: dict, kind: str, expected: str) -> None:
    empty = dict.fromkeys(row)
    found = recognised('rows', Listed([empty, row]), False, frozenset({kind}))
    assert str(found) == expected
    assert recognised('rows', InOrder(Listed([empty, row])), True, frozenset({kind})) == found
    prompt, meta = BoundTemplate(make_formatter(*found)).format_prompt_only_sample(row)
    assert prompt[-1]['role'] == 'user'
    if found.template == 'Prompts':
        assert meta.keys() >= row.keys() - {found.options['prompt']}, 'rewards get the other columns'
    else:
        answer = BoundTemplate(make_formatter(*found)).format_supervised_sample(row)[0][-1]
        assert [part['type'] for part in answer['content']] == [kind]


@pytest.mark.parametrize(
    ('row', 'writes'),
    [
        ({'image': 'a.png', 'text': 'A fox'}, {'video'}),
        ({'image': 'a.png'}, {'image'}),
        ({'text': 'A fox', 'picture': 'a.png'}, {'image'}),
        ({'messages': [], 'prompt': 'A fox'}, {'image'}),
        (PICK, {'audio'}),
    ],
)
def test_other_columns_are_refused_with_what_is_known(row: dict, writes: set) -> None:
    with pytest.raises(DataError) as caught:
        recognised('rows', Listed([row]), False, frozenset(writes))
    assert f'its columns ({", ".join(row)}) are none that are known' in str(caught.value)
    for kind in writes:
        assert f"'{kind}'" in str(caught.value) and f"'better_{kind}'" in str(caught.value)
    assert ('human_preference' in str(caught.value)) is ('image' in writes)


def test_answers_in_text_have_no_columns_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no template is given'):
        load_sources(write_rows(tmp_path / 'rows.jsonl', [{'image': 'a.png', 'text': 'A fox'}]), None)


def test_what_was_recognised_is_logged_and_takes_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path / 'rows.jsonl', [{'image': 'a.png', 'text': 'A fox'}])
    with caplog.at_level(logging.INFO, 'align_anything'):
        (source,) = load_sources(
            path, None, writes=frozenset({'image'}), template_kwargs={'system_prompt': 'Draw', 'image_folder': 'there'}
        )
    assert f"'{path}' has no template, and the columns of Instruction {{answers: image}}" in caplog.text
    assert (source.formatter.name, source.formatter.system_prompt, source.folders) == (
        'Instruction',
        'Draw',
        {'image': 'there'},
    )
