"""Rows that cannot be used are left out, counted and listed with their reason, the same on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.harness.pairwise import first_of
from tests.trainers.runs import IMAGE, TEXT, lines, run, sft, succeed, text_rows, write_rows

PICKY = """
from align_anything.datasets.formatters.base import BaseFormatter

class Picky(BaseFormatter):
    def check_validation(self, raw_sample):
        return raw_sample['number'] != 2

    def format_supervised_sample(self, raw_sample):
        return [
            {'role': 'user', 'content': 'count'},
            {'role': 'assistant', 'content': 'sun ' * (8 // raw_sample['number'])},
        ], {}
"""
GOOD = {'instruction': 'name a fish', 'output': 'salt'}
INSTRUCTIONS = [
    (GOOD, None),
    ({**GOOD, 'output': ''}, 'empty answer'),
    ({**GOOD, 'output': '  \n'}, 'empty answer'),
    ({**GOOD, 'output': None}, "column 'output' is null"),
    ({'instruction': 'no answer at all'}, 'Its columns: instruction'),
    ({**GOOD, 'output': 7}, None),  # a number is read as text
    ({**GOOD, 'instruction': ''}, 'empty user turn'),
    ({**GOOD, 'instruction': 'moon ' * 200}, 'the prompt alone has'),
    ({**GOOD, 'output': 'a text with <image> in it'}, '1 image placeholder(s)'),
    ({**GOOD, 'tools': '[{"name": "f"}]'}, None),  # the template writes them
    ({**GOOD, 'tools': '[{"name": "f"'}, 'should be JSON'),
    ({**GOOD, 'history': [['one', 'two', 'three']]}, 'history'),
    ({**GOOD, 'output': 'long ' * 300}, None),  # cut at the end
]
TURN = {'role': 'user', 'content': 'sun'}
REPLY = {'role': 'assistant', 'content': 'sea'}
CHATS = [
    ([TURN, REPLY], None),
    ([TURN], 'no assistant turn'),
    ([], 'empty'),
    ([{'role': 'usr', 'content': 'x'}, REPLY], "unknown role 'usr'"),
    ([{'role': 'user'}, REPLY], "no {'role', 'content'} message"),
    ([TURN, {'role': 'assistant', 'content': None}], 'null content'),
    ([TURN, {'role': 'assistant', 'content': 5}], 'int as content'),
    ([TURN, {'role': 'assistant', 'content': [{'type': 'picture'}]}], "unknown type 'picture'"),
    ([TURN, {**REPLY, 'content': None, 'tool_calls': [{'name': 'f'}]}], None),
    ([TURN, {**REPLY, 'tool_calls': [{'name': 'f'}]}], 'changes the answer'),  # Llama's shows no text beside a call
    ([TURN, {**REPLY, 'tool_calls': ['f']}], "no record with a 'name'"),
    ([TURN, {**REPLY, 'reasoning_content': 'wet'}], 'does not write any'),
    ([TURN, REPLY, TURN], None),  # what follows the last answer goes
    ([{'role': 'system', 'content': ''}, TURN, REPLY], None),
    ('not a list', 'messages'),
]


def listed(folder: Path, name: str = 'skipped_samples.jsonl') -> dict[str, str]:
    return {record['source']: record['reason'] for record in lines(folder / name)}


def check(folder: Path, expected: dict[str, str | None], filtered: int = 0) -> None:
    """Every row that should be skipped is, with its reason; every other one was trained on."""
    apart = listed(folder, 'filtered_samples.jsonl')
    assert len(apart) == filtered and not apart.keys() & listed(folder).keys()
    reasons = {**listed(folder), **apart}
    wanted = {source: reason for source, reason in expected.items() if reason is not None}
    assert reasons.keys() == wanted.keys(), reasons
    assert {source: reasons[source] for source, text in wanted.items() if text not in reasons[source]} == {}
    records = [record for record in lines(folder / 'metrics.jsonl') if 'train/samples' in record]
    assert sum(record['train/samples'] for record in records) == len(expected) - len(wanted)
    assert records[-1]['train/skipped'] == len(wanted) - filtered
    assert records[-1].get('train/filtered', 0) == filtered


@pytest.fixture(scope='module')
def texts(tmp_path_factory) -> tuple[dict, dict[str, str | None]]:
    folder = tmp_path_factory.mktemp('texts')
    (folder / 'picky.py').write_text(PICKY)
    numbers = write_rows(folder / 'numbers.jsonl', [{'number': number} for number in (1, 0, 2, 4)])
    instructions = write_rows(folder / 'instructions.jsonl', [row for row, _ in INSTRUCTIONS])
    chats = write_rows(folder / 'chats.jsonl', [{'messages': turns} for turns, _ in CHATS])
    expected = {
        **{f'{instructions}:{number}': reason for number, (_, reason) in enumerate(INSTRUCTIONS, 1)},
        **{f'{chats}:{number}': reason for number, (_, reason) in enumerate(CHATS, 1)},
        f'{numbers}:1': None,
        f'{numbers}:2': 'ZeroDivisionError',
        f'{numbers}:3': 'rejects the row',
        f'{numbers}:4': None,
    }
    return {
        'train_datasets': [str(instructions), str(chats), str(numbers)],
        'train_template': f'[Instruction, Messages, {folder}/picky.py:Picky]',
        'max_skipped_ratio': 1.0,
    }, expected


@pytest.mark.parametrize('ranks', first_of([1, 2], 1))
def test_texts(tiny, texts, tmp_path, ranks):
    settings, expected = dict(texts[0]), texts[1]
    batch = {'per_device_train_batch_size': 4 // ranks, 'num_workers': 1}
    succeed(sft(tmp_path, tiny('llama'), settings.pop('train_datasets'), **settings, **batch), ranks)
    # One that the template's own check rejects.
    check(tmp_path, expected, filtered=1)


@pytest.mark.parametrize('ranks', first_of([1, 2], 2))
def test_a_step_without_a_single_usable_row_changes_nothing_and_hangs_nobody(tiny, tmp_path, ranks):
    rows = [{**row, 'output': '' if number else row['output']} for number, row in enumerate(text_rows(8))]
    output = succeed(
        sft(tmp_path / 'run', tiny('llama'), write_rows(tmp_path / 'rows.jsonl', rows), per_device_train_batch_size=1,
            max_skipped_ratio=1.0, ds_cfgs='ds_z3_config.json'), ranks)  # fmt: skip
    assert 'not finite' not in output
    assert len(listed(tmp_path / 'run')) == 7


def _pictures(folder: Path) -> list[tuple[dict, str | None]]:
    """Writes images; returns rows with the reason why each cannot be used, None where it can."""
    picture = Image.fromarray(numpy.arange(40 * 30 * 3, dtype=numpy.uint8).reshape(40, 30, 3))
    works = {
        'rgb.png': picture,
        'one_pixel.png': picture.crop((0, 0, 1, 1)),
        'one_row.png': picture.crop((0, 0, 30, 1)),
        'cmyk.jpg': picture.convert('CMYK'),
        'palette.gif': picture.convert('P'),
        'rgba.png': picture.convert('RGBA'),
        'grey.png': picture.convert('L'),
        'grey_alpha.png': picture.convert('LA'),
        'two_colours.png': picture.convert('1'),
        'sixteen_bits.png': Image.fromarray(numpy.arange(1200, dtype=numpy.uint16).reshape(40, 30) * 50),
    }
    for name, image in works.items():
        image.save(folder / name)
    content = (folder / 'rgb.png').read_bytes()
    (folder / 'truncated.png').write_bytes(content[: len(content) // 2])
    (folder / 'nothing.png').write_bytes(b'')
    (folder / 'text.png').write_text('this is no picture')
    (folder / 'folder.png').mkdir()
    Image.new('1', (9000, 9000)).save(folder / 'huge.png')
    Image.fromarray(numpy.ones((8, 8), dtype=numpy.float32)).save(folder / 'floats.tiff')
    rows: list[tuple[dict, str | None]] = [({**GOOD, 'image': name}, None) for name in works]
    return rows + [
        ({**GOOD, 'image': 'truncated.png'}, 'cannot be decoded'),
        ({**GOOD, 'image': 'nothing.png'}, 'is empty (0 bytes)'),
        ({**GOOD, 'image': 'text.png'}, 'image'),
        ({**GOOD, 'image': 'folder.png'}, 'is a folder'),
        ({**GOOD, 'image': 'missing.png'}, 'does not exist'),
        ({**GOOD, 'image': 'huge.png'}, 'is too large: 9000 x 9000'),
        ({**GOOD, 'image': 'floats.tiff'}, 'float pixels'),
        ({**GOOD, 'image': 'https://example.org/dog.png'}, 'URLs are off'),
        ({**GOOD, 'image': 'data:image/png;base64,%%%'}, 'broken base64'),
        ({**GOOD, 'image': ''}, 'empty'),
        (GOOD, None),  # a row of text among rows with images
        ({**GOOD, 'image': ['rgb.png', 'rgba.png']}, None),
        ({**GOOD, 'image': ['rgb.png', 'missing.png']}, 'does not exist'),
        ({**GOOD, 'instruction': '<image> or <image>?', 'image': ['rgb.png', 'rgba.png']}, None),
        ({**GOOD, 'instruction': '<image> or <image>?', 'image': 'rgb.png'}, '2 image placeholder(s)'),
        ({**GOOD, 'instruction': 'only <image>?', 'image': ['rgb.png'] * 3}, '1 image placeholder(s)'),
        ({**GOOD, 'instruction': 'where is <image>?', 'image': None}, '1 image placeholder(s)'),
        ({**GOOD, 'image': ['rgb.png'] * 40}, 'the prompt alone has'),
        (
            {'history': [['sun', 'moon ' * 200]], 'instruction': 'and <image>?', 'output': 'salt', 'image': 'rgb.png'},
            'media would be cut by truncation',
        ),
        ({**GOOD, 'output': '', 'image': 'rgb.png'}, 'empty answer'),
    ]  # fmt: skip


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> tuple[Path, dict[str, str | None]]:
    folder = tmp_path_factory.mktemp('pictures')
    made = _pictures(folder)
    path = write_rows(folder / 'rows.jsonl', [row for row, _ in made])
    return path, {f'{path}:{number}': reason for number, (_, reason) in enumerate(made, 1)}


@pytest.mark.parametrize('ranks', first_of([1, 2], 2))
def test_images(tiny, pictures, tmp_path, ranks):
    path, expected = pictures
    argv = sft(tmp_path, tiny('llava'), path, per_device_train_batch_size=4 // ranks, num_workers=1,
               max_skipped_ratio=1.0, freeze_vision_tower=False, ds_cfgs='ds_z2_config.json')  # fmt: skip
    succeed(argv, ranks, IMAGE)
    check(tmp_path, expected)


def test_an_image_in_a_later_row_of_a_text_run_stops_it_and_names_the_pair(tiny, tmp_path):
    """The first rows, which are tried before the model is loaded, have none."""
    rows = [*text_rows(30), {**GOOD, 'image': 'dog.png'}]
    path = write_rows(tmp_path / 'rows.jsonl', rows)
    ended = run(sft(tmp_path / 'run', tiny('llama'), path), 2, TEXT)
    [met] = [item for item in ended if item.code == 2]  # the launcher ends the other rank
    assert 'Traceback' not in met.output
    assert f"{path}:31: the row holds image media, but the pair 'text_to_text' takes only text" in met.output


def test_the_list_of_a_run_that_was_stopped_by_it_holds_every_row_met(tiny, tmp_path):
    rows = [{**row, 'output': row['output'] if number % 2 else ''} for number, row in enumerate(text_rows(40))]
    path = write_rows(tmp_path / 'rows.jsonl', rows)
    ended = run(sft(tmp_path / 'run', tiny('llama'), path, max_skipped_ratio=0.2), 2)
    assert [item.code for item in ended] == [2, 2]
    assert 'of 40 rows could not be used, data_cfgs.max_skipped_ratio=0.2 allows fewer' in ended[0].output
    found = listed(tmp_path / 'run')
    # 0.2 x 40 = 8 may be skipped; a step has 4 rows, so it stops after 9 to 12.
    assert 9 <= len(found) <= 12
    broken = {f'{path}:{number}' for number in range(1, 41, 2)}
    assert found.keys() <= broken
