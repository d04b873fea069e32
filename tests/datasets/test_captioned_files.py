"""Captions beside media, tar archives and lists of lines are rows, and what is wrong in them is told."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Skipped
from align_anything.datasets.sources import load_rows, load_stream
from tests.datasets.clips import clip, sound, tone
from tests.datasets.fakes import make_dataset


def png(size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', size, 'red').save(buffer, 'PNG')
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> str:
    """Writes files by their names and returns the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def pack(path: Path, members: dict[str, bytes | str]) -> Path:
    """Writes members into a tar archive."""
    with tarfile.open(path, 'w') as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def everything(source: str, **options: Any) -> list[dict[str, Any]]:
    """The rows, the same whether they are indexed or streamed."""
    rows = load_rows(source, **options)
    found = [rows[index] for index in range(len(rows))]
    assert [row for _, row in load_stream(source, **options)] == found
    return found


def test_a_caption_stands_beside_its_medium(tmp_path: Path) -> None:
    files = {
        'a.png': png(),
        'a.txt': '\ufeffA fox\n',
        'b.v2.jpg': png(),
        'b.v2.caption': 'A dog',
        'deep/c.mp4': clip([1, 2]),
        'deep/c.txt': 'A cat jumps',
        'deep/c.json': '{"fps": 1.50, "text": "not this"}',
        'd.wav': sound(tone(0.2)),
        'd.txt': 'A tone',
    }
    assert everything(write(tmp_path, files)) == [
        {'text': 'A fox', 'image': f'{tmp_path}/a.png'},
        {'text': None, 'caption': 'A dog', 'image': f'{tmp_path}/b.v2.jpg'},
        {'text': 'A tone', 'audio': f'{tmp_path}/d.wav'},
        {'text': 'A cat jumps', 'fps': 1.5, 'video': f'{tmp_path}/deep/c.mp4'},
    ]
    assert load_rows(str(tmp_path)).row_name(0) == f'{tmp_path}/a.png'


def test_a_folder_may_be_named_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once more from where media are looked for, which is that folder itself."""
    write(tmp_path / 'pictures', {'a.png': png(), 'a.txt': 'A fox'})
    monkeypatch.chdir(tmp_path)
    assert everything('pictures') == everything(str(tmp_path / 'pictures'))


def test_folders_that_are_repeated_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        '3_sks dog/1.png': png(),
        '2_cat/1.png': png(),
        '2_cat/1.txt': 'A cat',
        '2_cat/2.png': png(),
        'plain/1.png': png(),
        'plain/1.txt': 'Plain',
    }
    with caplog.at_level(logging.INFO, 'align_anything'):
        rows = everything(write(tmp_path, files))
    texts = [(row['text'], Path(row['image']).name) for row in rows]
    assert texts == [
        *[('A cat', '1.png')] * 2,
        *[(None, '2.png')] * 2,
        *[('sks dog', '1.png')] * 3,
        ('Plain', '1.png'),
    ]
    assert "'3_sks dog' come 3 times, and have its name 'sks dog' as their caption" in caplog.text
    assert "'2_cat' come 2 times.\n" in caplog.text


def test_splits_are_folders_and_never_names_of_media(tmp_path: Path) -> None:
    files = {
        'train/test_tube.png': png(),
        'train/test_tube.txt': 'A tube',
        'test/train_station.png': png(),
        'test/train_station.txt': 'A station',
    }
    write(tmp_path, files)
    assert [row['text'] for row in everything(str(tmp_path))] == ['A tube']
    assert [row['text'] for row in everything(str(tmp_path), split='test')] == ['A station']


def test_a_metadata_file_goes_before_captions(tmp_path: Path) -> None:
    files = {'a.png': png(), 'a.txt': 'beside', 'metadata.csv': 'file_name,text\na.png,in the table\n'}
    assert everything(write(tmp_path, files)) == [{'image': f'{tmp_path}/a.png', 'text': 'in the table'}]


def test_a_caption_without_medium_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_rows(write(tmp_path, {'a.png': png(), 'a.txt': 'A fox', 'gone.txt': 'A dog'}))
    assert f'1 captions have no medium beside them, such as {tmp_path}/gone.txt' in caplog.text


def test_images_without_captions_stay_an_image_folder(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path / 'images', {'a.png': png()}), cache_dir=str(tmp_path / 'cache'))
    assert set(rows[0]) == {'image'}


SHARD = {
    'train/0001.png': png(),
    'train/0001.txt': 'A fox\n',
    'train/0001.json': '{"width": 8, "caption": "A fox, again"}',
    'train/0002.jpg': png((4, 4)),
    'train/0002.txt': 'A dog',
    'train/0002.cls': '7',
    './0003.input.png': png((2, 2)),
    './0003.output.png': png((3, 3)),
    './0003.txt': 'Blue, please',
    './._0003.png': b'rubbish of another system',
    '0004.mp4': clip([1, 2]),
    '0004.txt': 'A clip',
    '0005.wav': sound(tone(0.2)),
    '0005.txt': 'A tone',
}


def test_members_of_one_name_are_a_row(tmp_path: Path) -> None:
    path = pack(tmp_path / '00000.tar', SHARD)
    rows = everything(str(path))
    said = [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    assert said == [
        {'text': 'A fox', 'width': 8, 'caption': 'A fox, again'},
        {'text': 'A dog', 'cls': '7'},
        {'text': 'Blue, please'},
        {'text': 'A clip'},
        {'text': 'A tone'},
    ]
    media = [
        {key: (value['bytes'], value['path']) for key, value in row.items() if isinstance(value, dict)} for row in rows
    ]
    assert media == [
        {'image': (SHARD['train/0001.png'], f'{path}:1.png')},
        {'image': (SHARD['train/0002.jpg'], f'{path}:2.jpg')},
        {
            'input': (SHARD['./0003.input.png'], f'{path}:3.input.png'),
            'output': (SHARD['./0003.output.png'], f'{path}:3.output.png'),
        },
        {'video': (SHARD['0004.mp4'], f'{path}:4.mp4')},
        {'audio': (SHARD['0005.wav'], f'{path}:5.wav')},
    ]


def test_shards_of_a_folder_are_joined_and_reach_the_model(tmp_path: Path) -> None:
    for number in range(2):
        pack(tmp_path / f'{number:05d}.tar', {'a.png': png((number + 1, 1)), 'a.txt': f'Picture {number}'})
    dataset = make_dataset(str(tmp_path), 'Instruction', template_kwargs={'answers': 'image'})
    texts = [''.join(map(chr, dataset[index].responses[0].ids)) for index in range(2)]
    assert texts == ['Picture 0|image(1, 1)', 'Picture 1|image(2, 1)']
    assert load_rows(str(tmp_path)).row_name(1) == f'{tmp_path}/00001.tar:1'


def test_lists_of_prompts_and_media_are_rows_line_by_line(tmp_path: Path) -> None:
    write(tmp_path, {'prompts.txt': 'A fox\nA dog\n\n', 'videos.txt': 'videos/1.mp4\nvideos/2.mp4', 'README.txt': 'hi'})
    assert everything(str(tmp_path)) == [
        {'text': 'A fox', 'video': 'videos/1.mp4'},
        {'text': 'A dog', 'video': 'videos/2.mp4'},
    ]
    write(tmp_path, {'videos/1.mp4': clip([1, 2]), 'videos/2.mp4': b''})
    dataset = make_dataset(
        str(tmp_path), 'Instruction', template_kwargs={'answers': 'video'}, allowed=frozenset({'video'})
    )
    assert isinstance(dataset.formatted(0), list)
    assert dataset[1] == Skipped(f'{tmp_path}/prompts.txt:2', f"video '{tmp_path}/videos/2.mp4' is empty (0 bytes).")


@pytest.mark.parametrize('name', ['prompts.txt', 'ocr_train.txt'])
def test_a_list_of_prompts_is_rows_of_prompts(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: 'A sign that says "hello"\n\nA dog'})
    source = str(tmp_path) if name == 'prompts.txt' else f'{tmp_path}/{name}'
    assert everything(source) == [{'prompt': 'A sign that says "hello"'}, {'prompt': 'A dog'}]


BAD = [
    ({'prompts.txt': 'A fox', 'videos.txt': 'a.mp4\nb.mp4'}, '', 'prompts.txt has 1 lines and videos.txt 2'),
    ({'a.mp4': b'x', 'b.wav': b'x'}, '', 'holds media without captions. Put the caption of x.mp4 into x.txt'),
    ({'a.tar': b'no archive at all'}, 'a.tar', 'cannot be read as a tar archive'),
    ({'a.txt': b'\xff\xfe\x00'}, 'a.txt', 'is no text in UTF-8'),
    ({'notes.txt': 'hello'}, '', r'holds no data files, but \.txt'),
    (
        {'train/a.png': png(), 'train/a.txt': 'A fox', 'test/b.png': png()},
        'test',
        'no medium of this split has a caption',
    ),
]


@pytest.mark.parametrize(('files', 'place', 'message'), BAD)
def test_what_cannot_be_rows_says_why(tmp_path: Path, files: dict, place: str, message: str) -> None:
    source, split = write(tmp_path, files), place if place == 'test' else None
    with pytest.raises(DataError, match=message):
        load_rows(source if split else f'{source}/{place}'.rstrip('/'), split=split)


def test_arguments_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {'a.png': png(), 'a.txt': 'A fox'})
    for source in (str(tmp_path), str(pack(tmp_path / 'a.tar', SHARD))):
        with pytest.raises(DataError, match='leave out field'):
            load_rows(source, optional_args={'field': 'data'})


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ({'a.png': png(), 'a.jpg': png()}, 'holds two image files of one name'),
        ({'a.png': png(), 'a.txt': b'\xff'}, r'\(its \.txt\): is no text in UTF-8'),
        ({'a.png': png(), 'a.json': '[1]'}, r'\(its \.json\): a row must be a JSON object'),
    ],
)
def test_a_bad_member_costs_its_row(tmp_path: Path, members: dict, message: str) -> None:
    rows = load_rows(str(pack(tmp_path / 'a.tar', {**members, 'b.txt': 'fine'})))
    with pytest.raises(SampleError, match=message):
        rows[0]
    assert rows[1] == {'text': 'fine'}


def test_json_beside_media_is_no_data_file(tmp_path: Path) -> None:
    files = {'a.png': png(), 'a.json': json.dumps({'caption': 'A fox', 'score': 5})}
    (row,) = everything(write(tmp_path, files))
    assert row == {'text': None, 'caption': 'A fox', 'score': 5, 'image': f'{tmp_path}/a.png'}
