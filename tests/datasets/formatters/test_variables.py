"""The environment variables that align-anything's own templates read are heard, under what settings and options say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align_anything.core.errors import DataError
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.formatters.base import make_formatter
from align_anything.datasets.source_loading import load_sources

THOUGHTS = {'prompt': 'Why?', 'thoughts': [{'content': 'Hm.'}], 'answer': 'So.'}
ROWS = {
    'AA_TV2T': ('ROOT_VIDEO_PATH', 'video', {'video_path': 'a.mp4', 'prompt': 'What?', 'response': 'It.'}),
    'Qwen2-VL': ('ROOT_VIDEO_PATH', 'video', {'video_path': 'a.mp4', 'prompt': 'What?', 'output': 'It.'}),
    'LLaVA_Pretrain': (
        'COCO_DATA_DIR',
        'image',
        {'image': 'a.png', 'conversations': [{'from': 'human', 'value': '<image>?'}, {'from': 'gpt', 'value': 'It.'}]},
    ),
}


@pytest.mark.parametrize('name', ROWS)
def test_relative_paths_start_where_the_variable_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, kind, row = ROWS[name]
    monkeypatch.delenv(variable, raising=False)
    assert BoundTemplate(make_formatter(name)).folders == {}
    monkeypatch.setenv(variable, '/heard')
    assert BoundTemplate(make_formatter(name)).folders == {kind: '/heard'}
    conversation, _ = BoundTemplate(make_formatter(name)).format_supervised_sample(row)
    assert '/heard/a.' in repr(conversation)
    # What was set goes over it.
    assert BoundTemplate(make_formatter(name), {kind: '/set'}).folders == {kind: '/set'}
    assert BoundTemplate(make_formatter(name, {f'{kind}_folder': '/option'})).folders == {kind: '/option'}
    (tmp_path / 'rows.json').write_text(json.dumps([row]))
    for given, expected in (({}, '/heard'), ({f'{kind}_folder': '/set'}, '/set')):
        [source] = load_sources(str(tmp_path / 'rows.json'), name, **given)
        assert source.folders[kind] == expected
    # Other templates have no such variable.
    assert BoundTemplate(make_formatter('Instruction')).folders == {}


@pytest.mark.parametrize('text', ['[<a>, <b>, <c>]', "['<a>', '<b>', '<c>', '<d>']", '<a>,<b>,<c>'])
def test_the_marks_of_thoughts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('O1_SPECIAL_TOKENS', text)
    conversation, _ = make_formatter('O1_T2T').format_supervised_sample(THOUGHTS)
    assert conversation[-1]['content'] == '<a>Hm.\n<b>\n<c>So.'
    conversation, _ = make_formatter('O1_T2T', {'special_tokens': ['1', '2', '3']}).format_supervised_sample(THOUGHTS)
    assert conversation[-1]['content'] == '1Hm.\n2\n3So.'
    monkeypatch.setenv('O1_SPECIAL_TOKENS', '[<a>]')
    with pytest.raises(DataError, match='a list of three marks'):
        make_formatter('O1_T2T')
