"""Every kind of source gives its rows undecoded and named; every wrong one says what is wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets import rows as rows_module
from align_anything.datasets.sources import load_rows, load_stream, source_folder

ROWS = [{'prompt': f'question {number}', 'answer': number} for number in range(10)]


def write_lines(path: Path, rows: list[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
    return path


def write_table(path: Path, rows: list[Any] = ROWS) -> Path:
    from datasets import Dataset

    table = Dataset.from_list(rows)
    if path.suffix == '.parquet':
        table.to_parquet(str(path))
    elif path.suffix == '.csv':
        table.to_csv(str(path))
    else:
        table.save_to_disk(str(path.parent / 'saved'))
        next((path.parent / 'saved').glob('*.arrow')).rename(path)
    return path


def everything(rows: Any) -> list[dict[str, Any]]:
    return [rows[index] for index in range(len(rows))]


@pytest.mark.parametrize('text', [json.dumps(ROWS), json.dumps(ROWS, indent=2), '\n'.join(map(json.dumps, ROWS))])
def test_json_file_holds_a_list_or_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / 'data.json').write_text(text)
    rows = load_rows(str(tmp_path / 'data.json'))
    assert everything(rows) == ROWS
    assert rows.row_name(3) == f'{tmp_path}/data.json:4'


def test_json_lines_are_named_by_line_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / 'data.jsonl'
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": "\xc3\xa9"}')
    rows = load_rows(str(file))
    assert everything(rows) == [{'a': 1}, {'a': 'é'}]
    assert [rows.row_name(0), rows.row_name(1)] == [f'{file}:1', f'{file}:4']


def test_json_rows_of_mixed_shapes_keep_them(tmp_path: Path) -> None:
    mixed = [{'content': 'text'}, {'content': [{'type': 'image'}, {'type': 'text', 'text': 'x'}]}, {'other': None}]
    assert everything(load_rows(str(write_lines(tmp_path / 'a.jsonl', mixed)))) == mixed


def test_a_row_is_fresh_at_each_reading(tmp_path: Path) -> None:
    (tmp_path / 'list.json').write_text(json.dumps([{'turns': []}]))
    for file in (tmp_path / 'list.json', write_lines(tmp_path / 'lines.jsonl', [{'turns': []}])):
        rows = load_rows(str(file))
        rows[0]['turns'].append('a formatter wrote this')
        assert rows[0] == {'turns': []}


def test_rows_can_be_pickled(tmp_path: Path) -> None:
    for source in (write_lines(tmp_path / 'a.jsonl'), write_table(tmp_path / 'a.parquet')):
        rows = load_rows(str(source), size=4, cache_dir=str(tmp_path / 'cache'))
        assert everything(pickle.loads(pickle.dumps(rows))) == ROWS[:4]


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.arrow'])
def test_table_files(tmp_path: Path, suffix: str) -> None:
    file = write_table(tmp_path / f'data{suffix}')
    rows = load_rows(str(file), cache_dir=str(tmp_path / 'cache'), split='train[20%:50%]')
    written = [{key: str(value) for key, value in row.items()} for row in ROWS] if suffix == '.csv' else ROWS
    assert everything(rows) == written[2:5]
    assert rows.row_name(0) == f'{file}:3'


def test_folder_finds_splits_and_joins_their_files(tmp_path: Path) -> None:
    write_lines(tmp_path / 'train' / 'part1.jsonl', ROWS[:3])
    write_lines(tmp_path / 'train' / 'part2.json', ROWS[3:5])
    write_lines(tmp_path / 'val.jsonl', ROWS[5:])
    write_lines(tmp_path / 'extra.jsonl', ROWS[:1])
    (tmp_path / 'README.md').write_text('# not data')
    (tmp_path / 'train' / 'photo.png').write_bytes(b'what rows point to')
    folder = str(tmp_path)
    assert everything(load_rows(folder)) == ROWS[:5]
    assert load_rows(folder).row_name(3) == f'{tmp_path}/train/part2.json:1'
    assert everything(load_rows(folder, split='validation')) == ROWS[5:]
    assert everything(load_rows(folder, split='extra')) == ROWS[:1]
    assert everything(load_rows(folder, split='validation[1:3]+train[:1]')) == [*ROWS[6:8], ROWS[0]]
    with pytest.raises(
        DataError, match=r"no split 'validaton'. Did you mean 'validation'\? It has: extra, train, validation"
    ):
        load_rows(folder, split='validaton')


def test_folder_with_an_image_folder_named_like_a_split(tmp_path: Path) -> None:
    write_lines(tmp_path / 'chat.json')
    (tmp_path / 'images' / 'train2017').mkdir(parents=True)
    (tmp_path / 'images' / 'train2017' / '1.jpg').write_bytes(b'')
    assert everything(load_rows(str(tmp_path))) == ROWS


def test_a_broken_split_does_not_stop_another(tmp_path: Path) -> None:
    write_lines(tmp_path / 'train.jsonl')
    (tmp_path / 'test.jsonl').write_text('{broken\n')
    assert len(load_rows(str(tmp_path))) == 10
    with pytest.raises(DataError, match='test.jsonl:1'):
        load_rows(str(tmp_path), split='test')


def test_data_files_choose_within_a_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / 'a.jsonl', ROWS[:2])
    write_lines(tmp_path / 'b.jsonl', ROWS[2:])
    assert everything(load_rows(str(tmp_path), data_files='a.jsonl')) == ROWS[:2]
    assert everything(load_rows(str(tmp_path), data_files=['b.jsonl', 'a.jsonl'])) == [*ROWS[2:], *ROWS[:2]]
    assert everything(load_rows(str(tmp_path), data_files={'train': 'a.jsonl', 'dev': 'b*'}, split='dev')) == ROWS[2:]
    assert everything(load_rows('json', data_files=str(tmp_path / 'a.jsonl'))) == ROWS[:2]
    with pytest.raises(DataError, match=r'no files matching data_files=.c\.jsonl'):
        load_rows(str(tmp_path), data_files='c.jsonl')


def test_saved_datasets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / 'one'))
    DatasetDict(train=table.select(range(6)), test=table.select(range(6, 10))).save_to_disk(str(tmp_path / 'two'))
    assert everything(load_rows(str(tmp_path / 'one'), size=3)) == ROWS[:3]
    assert everything(load_rows(str(tmp_path / 'two'))) == ROWS[:6]
    test = load_rows(str(tmp_path / 'two'), split='test')
    assert everything(test) == ROWS[6:]
    assert test.row_name(1) == f'{tmp_path}/two[test]:2'
    with pytest.raises(DataError, match='not for it'):
        load_rows(str(tmp_path / 'one'), data_files='x')


def test_images_are_not_opened_when_a_row_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value

    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'not a picture')
    file = str(broken)
    columns = {'image': [file], 'more': [[file]], 'turn': [{'picture': file, 'n': 1}]}
    features = Features(image=Image(), more=List(Image()), turn={'picture': Image(), 'n': Value('int64')})
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / 'saved'))
    row, record = load_rows(str(tmp_path / 'saved'))[0], {'bytes': b'not a picture', 'path': 'broken.png'}
    assert row == {'image': record, 'more': [record], 'turn': {'picture': record, 'n': 1}}
    name, streamed = next(iter(load_stream(str(tmp_path / 'saved'))))
    assert (name, streamed) == (f'{tmp_path}/saved:1', row)


@pytest.mark.parametrize('metadata', ['metadata.jsonl', 'metadata.csv'])
def test_image_folder(tmp_path: Path, metadata: str) -> None:
    folder = tmp_path / 'train'
    write_lines(folder / 'metadata.jsonl', [{'file_name': f'{number}.png', 'text': str(number)} for number in (1, 2)])
    if metadata.endswith('csv'):
        (folder / 'metadata.jsonl').unlink()
        (folder / metadata).write_text('file_name,text\n1.png,1\n2.png,2\n')
    (folder / '1.png').write_bytes(b'')
    rows = load_rows(str(tmp_path))
    assert everything(rows) == [{'image': f'{folder}/{number}.png', 'text': str(number)} for number in (1, 2)]
    assert rows.row_name(1) == f'{folder}/{metadata}:2'


def test_image_folder_with_several_columns_of_names(tmp_path: Path) -> None:
    write_lines(
        tmp_path / 'metadata.jsonl', [{'mask_file_name': 'm.png', 'view_file_names': ['a.png'], 'file_name': 'c.mp4'}]
    )
    assert load_rows(str(tmp_path))[0] == {
        'mask': f'{tmp_path}/m.png',
        'view': [f'{tmp_path}/a.png'],
        'video': f'{tmp_path}/c.mp4',
    }


def test_optional_args_reach_the_reader(tmp_path: Path) -> None:
    (tmp_path / 'a.csv').write_text('x;y\n1;2\n')
    cache = str(tmp_path / 'cache')
    assert load_rows(str(tmp_path / 'a.csv'), optional_args={'delimiter': ';'}, cache_dir=cache)[0] == {
        'x': '1',
        'y': '2',
    }
    (tmp_path / 'nested.json').write_text(json.dumps({'version': 1, 'data': ROWS}))
    assert everything(load_rows(str(tmp_path / 'nested.json'), optional_args=['field=data'])) == ROWS
    with pytest.raises(DataError, match="Set optional_args to 'field=data'"):
        load_rows(str(tmp_path / 'nested.json'))
    with pytest.raises(DataError, match='must be key=value'):
        load_rows(str(tmp_path / 'nested.json'), optional_args=['data'])


BAD_SOURCES = [
    ('missing.jsonl', {}, "doesn't exist"),
    ('no/such/folder/x.json', {}, r"The folder '.*no/such/folder' doesn't exist either"),
    ('empty.jsonl', {}, 'has no rows'),
    ('empty.json', {}, 'has no rows'),
    ('broken.jsonl', {}, r'broken\.jsonl:2: not valid JSON'),
    ('broken.json', {}, r'broken\.json:3: not valid JSON'),
    ('numbers.jsonl', {}, r'numbers\.jsonl:1: a row must be a JSON object .* not a int'),
    ('strings.json', {}, r'strings\.json:2: entry 2 of the list is a str'),
    ('latin.jsonl', {}, r'latin\.jsonl:1: not valid JSON'),
    ('notes.odt', {}, r"can't read \.odt.*Readable: \.json"),
    ('broken.parquet', {}, r'broken\.parquet. could not be loaded'),
    ('good.jsonl', {'split': 'test'}, "no split 'test'.*It has: train"),
    ('good.jsonl', {'split': 'train[:x%]'}, "can't take split"),
    ('good.jsonl', {'split': 'train[5:5]'}, 'has no rows'),
    ('good.jsonl', {'size': 0}, 'at least 1'),
    ('good.jsonl', {'name': 'en'}, "name and data_files don't apply"),
    ('good.jsonl', {'optional_args': {'nonsense': 1}}, 'could not be loaded.*nonsense'),
    ('bare', {}, 'holds no data files, but no file at all'),
    ('papers', {}, r'holds no data files, but \.txt'),
    ('mixed', {}, 'several kinds'),
    ('splits', {}, r'several splits \(spare, validation\) and no .train'),
    ('spoiled', {}, "can't be read as a save_to_disk folder"),
]


@pytest.mark.parametrize(('source', 'options', 'message'), BAD_SOURCES, ids=lambda value: str(value)[:24])
def test_bad_sources_say_what_is_wrong(tmp_path: Path, source: str, options: dict[str, Any], message: str) -> None:
    contents = {
        'empty.jsonl': b'',
        'empty.json': b'[]',
        'broken.jsonl': b'{"a": 1}\n{"a": \n{"a": 3}\n',
        'broken.json': b'[\n {"a": 1},\n {"a": }\n]',
        'numbers.jsonl': b'1\n2\n',
        'strings.json': b'[{"a": 1}, "b"]',
        'latin.jsonl': '{"a": "é"}'.encode('latin-1'),
        'notes.odt': b'hello',
        'broken.parquet': b'PAR1 but no more',
        'papers/notes.txt': b'hello',
        'mixed/a.csv': b'x\n1\n',
        'mixed/a.jsonl': b'{}\n',
        'splits/validation.jsonl': b'{}\n',
        'splits/spare.jsonl': b'{}\n',
        'spoiled/state.json': b'{}',
    }
    (tmp_path / 'bare').mkdir()
    write_lines(tmp_path / 'good.jsonl')
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f'(?s){message}'):
        load_rows(str(tmp_path / source), cache_dir=str(tmp_path / 'cache'), **options)


def test_a_wrong_name_beside_a_right_one_is_suggested(tmp_path: Path) -> None:
    write_lines(tmp_path / 'train.jsonl')
    with pytest.raises(DataError, match=r"Did you mean 'train\.jsonl'\?"):
        load_rows(str(tmp_path / 'trian.jsonl'))


def test_unreachable_hub_says_both_readings_of_the_name() -> None:
    with pytest.raises(
        DataError, match='(?s)nobody/nothing.*could not be loaded.*There is no file or folder.*HF_TOKEN'
    ):
        load_rows('nobody/nothing')


def test_a_line_broken_past_the_check_costs_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, 'CHECK_BYTES', 5)
    file = tmp_path / 'large.jsonl'
    file.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    rows = load_rows(str(file))
    assert rows[2] == {'a': 3}
    with pytest.raises(SampleError, match=r'large\.jsonl:2: not valid JSON'):
        rows[1]


def test_streams_give_the_same_rows_and_names(tmp_path: Path) -> None:
    write_lines(tmp_path / 'lines.jsonl')
    (tmp_path / 'list.json').write_text(json.dumps(ROWS))
    write_table(tmp_path / 'table.parquet')
    for name in ('lines.jsonl', 'list.json', 'table.parquet'):
        source, cache = str(tmp_path / name), str(tmp_path / 'cache')
        rows = load_rows(source, cache_dir=cache)
        stream = load_stream(source, size=7, cache_dir=cache)
        expected = [(rows.row_name(index), rows[index]) for index in range(7)]
        assert list(stream) == expected
        assert list(stream) == expected, 'a second epoch reads again from the start'


def test_a_broken_line_of_a_stream_costs_its_row_only(tmp_path: Path) -> None:
    (tmp_path / 'a.jsonl').write_text('{"a": 1}\nbroken\n{"a": 3}\n')
    names, rows = zip(*load_stream(str(tmp_path / 'a.jsonl')), strict=True)
    assert [name.rpartition(':')[2] for name in names] == ['1', '2', '3']
    assert rows[0] == {'a': 1} and rows[2] == {'a': 3}
    assert isinstance(rows[1], SampleError)


def test_a_stream_has_no_slices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be taken from a stream"):
        load_stream(str(write_lines(tmp_path / 'a.jsonl')), split='train[:3]')


def test_media_paths_start_at_the_source(tmp_path: Path) -> None:
    file = write_lines(tmp_path / 'a.jsonl')
    assert source_folder(str(file)) == tmp_path
    assert source_folder(str(tmp_path)) == tmp_path
    assert source_folder('owner/name') is None
