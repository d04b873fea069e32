"""Folders as copies of hub repositories: named configurations, and relative media beside the file of their row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import DataError
from align_anything.datasets.sources import folder_of_row, load_rows, load_stream
from tests.datasets.fakes import make_dataset, write_rows

CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path: en/held/*.jsonl
- config_name: de
  data_dir: de
- config_name: table
  data_files: table/*.tsv
  sep: "|"
- config_name: typed
  data_files: typed/*.json
dataset_info:
  config_name: typed
  features:
  - name: answer
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
---
# A dataset
"""
TURNS = [{'role': 'user', 'content': '<image>what'}, {'role': 'assistant', 'content': 'yes'}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Each configuration has a picture called 0.png of a size of its own."""
    (tmp_path / 'README.md').write_text(CARD)
    for number, name in enumerate(('en', 'en/held', 'de', 'table', 'typed'), 3):
        (tmp_path / name).mkdir()
        Image.new('RGB', (number, 2)).save(tmp_path / name / '0.png')
        if name[:2] in ('en', 'de'):
            write_rows(tmp_path / name / 'rows.jsonl', [{'messages': TURNS, 'images': ['0.png']}])
    (tmp_path / 'table' / 'rows.tsv').write_text('answer|image\n02116|0.png\n')
    (tmp_path / 'typed' / 'rows.json').write_text('[{"answer": 1}]')
    Image.new('RGB', (9, 9)).save(tmp_path / 'top.png')
    return tmp_path


def shown(folder: Path, name: str, **options: Any) -> str:
    dataset = make_dataset(str(folder), 'Messages', name=name, **options)
    example = dataset[0]
    return ''.join(map(chr, example.responses[0].ids.tolist()))


def test_relative_media_start_at_the_file_of_their_row(folder: Path) -> None:
    assert shown(folder, 'en') == 'image(3, 2)|what|yes'
    assert shown(folder, 'en', split='test') == 'image(4, 2)|what|yes'
    assert shown(folder, 'de') == 'image(5, 2)|what|yes'
    rows = load_rows(str(folder), name='en')
    assert rows.row_name(0) == f'{folder}/en/rows.jsonl:1' and folder_of_row(rows.row_name(0)) == f'{folder}/en'
    assert [name for name, _ in load_stream(str(folder), name='de')] == [f'{folder}/de/rows.jsonl:1']


def test_media_that_lie_at_the_top_are_found_there(folder: Path) -> None:
    write_rows(folder / 'en' / 'rows.jsonl', [{'messages': TURNS, 'images': ['top.png']}])
    assert shown(folder, 'en') == 'image(9, 9)|what|yes'
    Image.new('RGB', (7, 7)).save(folder / 'en' / 'top.png')
    assert shown(folder, 'en') == 'image(7, 7)|what|yes', 'beside the file goes first'
    assert shown(folder, 'en', image_folder=str(folder)) == 'image(9, 9)|what|yes'


def test_a_missing_medium_is_named_where_it_should_be(folder: Path) -> None:
    write_rows(folder / 'en' / 'rows.jsonl', [{'messages': TURNS, 'images': ['absent.png']}])
    skipped = make_dataset(str(folder), 'Messages', name='en')[0]
    assert f"'{folder}/en/absent.png' does not exist" in skipped.reason


def test_what_the_card_says_about_reading_is_heeded(folder: Path) -> None:
    cache = str(folder / 'cache')
    assert load_rows(str(folder), name='table', cache_dir=cache)[0] == {'answer': '02116', 'image': '0.png'}
    assert str(load_rows(str(folder), name='typed', cache_dir=cache)[0]['answer']) == 'dog'
    (folder / 'de' / 'rows.jsonl').write_text('{"x": 1.50}')
    assert str(load_rows(str(folder), name='de')[0]['x']) == '1.50'


def test_a_wrong_or_missing_name_lists_the_configurations(folder: Path) -> None:
    with pytest.raises(DataError, match="no configuration 'eng'.*Did you mean 'en'.*It has: en, de, table, typed"):
        load_rows(str(folder), name='eng')
    with pytest.raises(DataError, match='several configurations: en, de, table, typed. Choose one'):
        load_rows(str(folder))


@pytest.mark.parametrize('streaming', [False, True])
def test_tables_in_several_folders_keep_theirs(tmp_path: Path, streaming: bool) -> None:
    for size, name in ((3, 'a'), (4, 'b')):
        (tmp_path / 'train' / name).mkdir(parents=True)
        (tmp_path / 'train' / name / 'rows.csv').write_text('instruction,output,image\nwhat,yes,0.png\n')
        Image.new('RGB', (size, 2)).save(tmp_path / 'train' / name / '0.png')
    dataset = make_dataset(str(tmp_path), 'Instruction', cache_dir=str(tmp_path / 'cache'), streaming=streaming)
    (source,) = dataset.sources
    names = [name for name, _ in source.rows] if streaming else [source.rows.row_name(number) for number in (0, 1)]
    assert [folder_of_row(name) for name in names] == [f'{tmp_path}/train/{name}' for name in ('a', 'b')]
    if not streaming:
        assert [''.join(map(chr, dataset[number].responses[0].ids.tolist())) for number in (0, 1)] == [
            'image(3, 2)|what|yes',
            'image(4, 2)|what|yes',
        ]


def test_rows_of_elsewhere_have_no_folder(tmp_path: Path) -> None:
    assert folder_of_row('owner/name[train]:3') == ''
    assert folder_of_row(f'{tmp_path}[train]:3') == str(tmp_path)
    assert folder_of_row(f'{tmp_path}/absent.jsonl:3') == ''
