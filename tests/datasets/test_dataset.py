"""A row becomes an Example or a named Skipped; what is wrong with the whole run stops it before a model loads."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import DataError, TrainingError
from align_anything.core.types import Example, Skipped
from align_anything.datasets import skips
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.preference import AnswersTask, PreferenceTask, UnpairedTask
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.skips import SkipReport
from align_anything.datasets.source_loading import load_sources
from tests.datasets.fakes import encode, encode_group, make_dataset, text_of, write_rows

USER_FILE = """
from align_anything.datasets import BaseFormatter

class Own(BaseFormatter):
    def check_validation(self, raw_sample):
        return raw_sample.get('valid', True)

    def format_supervised_sample(self, raw_sample):
        if raw_sample['ask'] == 'crash':
            raise RuntimeError('the formatter fell over')
        if raw_sample['ask'] == 'exit':
            raise SystemExit(0)
        if raw_sample['ask'] == 'nothing':
            return None
        turns = [{'role': 'user', 'content': raw_sample['ask']}, {'role': 'assistant', 'content': 'yes'}]
        meta = {'label': raw_sample.get('label')}
        for kind in ('image', 'audio'):
            if kind in raw_sample:
                meta[kind] = raw_sample[kind]
        return turns, meta
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A template in a user's own file."""
    (tmp_path / 'own.py').write_text(USER_FILE)
    return f'{tmp_path}/own.py:Own'


def letters(example: Example) -> str:
    return ''.join(map(chr, example.responses[0].ids.tolist()))


def test_a_row_becomes_a_named_example(tmp_path: Path) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'instruction': 'Add', 'input': '', 'output': 'Sum'}] * 2)
    example = make_dataset(source, train_on='last')[1]
    assert letters(example) == 'Add|Sum'
    assert example.source == f'{source}:2'
    assert example.meta['train_on'] == 'last'


def test_images_are_found_beside_the_file_and_meta_rides_along_without_them(tmp_path: Path, own: str) -> None:
    (tmp_path / 'pictures').mkdir()
    Image.new('RGB', (3, 2)).save(tmp_path / 'pictures' / 'a.png')
    rows = [{'ask': '<image>what', 'image': 'pictures/a.png', 'label': 7}]
    example = make_dataset(write_rows(tmp_path / 'a.jsonl', rows), own)[0]
    assert letters(example) == 'image(3, 2)|what|yes'
    assert example.meta == {'train_on': 'all_assistant', 'label': 7}


def test_image_folder_is_where_relative_paths_start(tmp_path: Path, own: str) -> None:
    Image.new('RGB', (3, 2)).save(tmp_path / 'a.png')
    (tmp_path / 'rows').mkdir()
    source = write_rows(tmp_path / 'rows' / 'a.jsonl', [{'ask': 'what', 'image': 'a.png'}])
    assert isinstance(make_dataset(source, own)[0], Skipped)
    assert letters(make_dataset(source, own, image_folder=str(tmp_path))[0]) == 'image(3, 2)|what|yes'
    kwargs = {'image_folder': str(tmp_path)}
    assert letters(make_dataset(source, own, template_kwargs=kwargs)[0]) == 'image(3, 2)|what|yes'


BAD_ROWS = [
    ({'ask': 'crash'}, r'own\.py:Own. failed with RuntimeError: the formatter fell over \(columns of the row: ask\)'),
    ({'ask': 'exit'}, r'own\.py:Own. failed with SystemExit: 0 \(columns of the row: ask\)'),
    ({'other': 1}, r"failed with KeyError: 'ask' \(columns of the row: other\)"),
    ({'ask': 'nothing'}, 'failed with TypeError'),
    ({'ask': 'hello', 'valid': False}, 'rejects the row'),
    ({'ask': ''}, 'empty user turn'),
    ({'ask': '<image>', 'image': 'absent.png'}, r"absent\.png' does not exist"),
    ({'ask': '<image><image>', 'image': 'absent.png'}, '2 image placeholder'),
    ({'ask': 'too long'}, 'prompt alone has 9 tokens, limit 8'),
]


@pytest.mark.parametrize(('row', 'reason'), BAD_ROWS, ids=lambda value: str(value)[:30])
def test_a_bad_row_is_skipped_with_its_name_and_reason(
    tmp_path: Path, own: str, row: dict[str, Any], reason: str
) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'ask': 'fine'}, row])
    skipped = make_dataset(source, own)[1]
    assert isinstance(skipped, Skipped)
    assert skipped.source == f'{source}:2'
    with pytest.raises(ValueError, match=reason):
        raise ValueError(skipped.reason)


def test_media_that_the_pair_does_not_take_stop_the_run(tmp_path: Path, own: str) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'ask': 'hear', 'audio': 'a.wav'}, {'ask': 'see', 'image': 'a.png'}])
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: the row holds audio media, but the pair 'some_pair' takes only text, image"
    ):
        make_dataset(source, own)[0]
    with pytest.raises(DataError, match=r"audio media.*takes only text\..*train_template_kwargs \{audios: ''\}"):
        make_dataset(source, own, allowed=frozenset()).probe()


def test_a_fault_of_the_encoder_names_the_row(tmp_path: Path, own: str) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'ask': 'bug'}])
    with pytest.raises(DataError, match=r'(?s)a\.jsonl:1: encoding this row failed with ZeroDivisionError.*Traceback'):
        make_dataset(source, own)[0]


def test_a_streamed_row_is_treated_like_an_indexed_one(tmp_path: Path) -> None:
    rows = [{'instruction': 'Add', 'output': 'Sum'}, 17]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    dataset = make_dataset(str(tmp_path / 'a.jsonl'), streaming=True)
    dataset.probe()
    streamed = [StreamedRow(0, name, row) for name, row in dataset.sources[0].rows]
    assert letters(dataset[pickle.loads(pickle.dumps(streamed[0]))]) == 'Add|Sum'
    broken = dataset[pickle.loads(pickle.dumps(streamed[1]))]
    assert (broken.source, 'not a int' in broken.reason) == (f'{tmp_path}/a.jsonl:2', True)


def test_probe_lists_the_reasons_when_no_row_can_be_used(tmp_path: Path) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'text': 'x'}] * 20)
    with pytest.raises(DataError) as caught:
        make_dataset(source).probe()
    message = str(caught.value)
    assert message.startswith(f"none of the first 8 rows of '{source}' can be used with template 'Alpaca'.")
    # A reason that all rows share is told once.
    assert message.count('\n- ') == 1 and f'\n- {source}:1 and 7 more: the row has no column' in message
    mixed = write_rows(tmp_path / 'b.jsonl', [*([{'text': 'x'}] * 3), {'instruction': 'x'}, *([{'text': 'x'}] * 9)])
    with pytest.raises(DataError) as caught:
        make_dataset(mixed).probe()
    assert [line.partition(': ')[0] for line in str(caught.value).splitlines()[1:]] == [
        f'- {mixed}:1 and 6 more',
        f'- {mixed}:4',
    ]


def test_probe_is_content_with_one_good_row(tmp_path: Path, own: str) -> None:
    rows = [{'ask': 'crash'}] * 7 + [{'ask': 'fine'}]
    make_dataset(write_rows(tmp_path / 'a.jsonl', rows), own).probe()
    make_dataset(write_rows(tmp_path / 'b.jsonl', [{'ask': 'x', 'valid': False}] * 9), own).probe()
    with pytest.raises(DataError, match='none of the first 1 rows'):
        make_dataset(write_rows(tmp_path / 'c.jsonl', [{'ask': 'x', 'valid': False}] * 9 + rows[:1]), own).probe()


def test_the_final_probe_encodes_and_tells_each_reason_once(tmp_path: Path, own: str) -> None:
    rows = [{'ask': 'too long'}] * 5 + [{'ask': ''}] + [{'ask': 'too long'}]
    source = write_rows(tmp_path / 'a.jsonl', rows)
    with pytest.raises(DataError) as caught:
        make_dataset(source, own).probe(final=True)
    assert str(caught.value).splitlines() == [
        f"none of the first 7 rows of '{source}' can be encoded for this model:",
        f'- {source}:1 and 5 more: prompt alone has 9 tokens, limit 8',
        f'- {source}:6: turn 0 is an empty user turn.',
    ]
    # One that can is enough, however late it comes among the first.
    make_dataset(write_rows(tmp_path / 'b.jsonl', [*rows * 5, {'ask': 'fine'}]), own).probe(final=True)


def test_a_dataset_of_filtered_rows_alone_is_refused_before_weights_are_loaded(tmp_path: Path, own: str) -> None:
    source = write_rows(tmp_path / 'a.jsonl', [{'ask': 'x', 'valid': False}] * 9)
    with pytest.raises(DataError, match=f"every row of '{source}' is filtered.*\n- {source}:1 and 8 more: template"):
        make_dataset(source, own).probe(final=True)
    # Those beyond the first may be others.
    make_dataset(write_rows(tmp_path / 'b.jsonl', [{'ask': 'x', 'valid': False}] * 99), own).probe(final=True)


EMPTY_HANDED = """
from align_anything.datasets import BaseFormatter


class Picky(BaseFormatter):
    def format_supervised_sample(self, raw_sample):
        if raw_sample['ask'] == 'no':
            return [], {}
        turns = [{'role': 'user', 'content': raw_sample['ask']}, {'role': 'assistant', 'content': 'yes'}]
        return turns, {'label': True}

    def format_preference_sample(self, raw_sample):
        if raw_sample['ask'] == 'no':
            return [], [], {}
        turns = [{'role': 'user', 'content': raw_sample['ask']}]
        return *([*turns, {'role': 'assistant', 'content': answer}] for answer in ('yes', 'no')), {}


class Half(BaseFormatter):
    def check_validation(self, raw_sample):
        return raw_sample['ask'] != 'no'

    def format_supervised_sample(self, raw_sample):
        turns = [{'role': 'user', 'content': raw_sample['ask']}, {'role': 'assistant', 'content': raw_sample['ask']}]
        return turns, {'label': True}
"""


@pytest.mark.parametrize('kind', ['supervised', 'preference', 'unpaired', 'answers', 'prompt'])
def test_empty_conversations_and_rejected_rows_are_filtered_in_every_task(tmp_path: Path, kind: str) -> None:
    (tmp_path / 'picky.py').write_text(EMPTY_HANDED)
    source = write_rows(tmp_path / 'a.jsonl', [{'ask': 'no'}, {'ask': 'well'}, {'ask': 'so'}])
    tasks = {
        'supervised': SupervisedTask(encode),
        'preference': PreferenceTask(encode_group),
        'unpaired': UnpairedTask(encode_group),
        'answers': AnswersTask(encode_group),
        'prompt': PromptTask(lambda conversation: encode(conversation).responses[0], 99),
    }
    for name in ('Picky', 'Half') if kind != 'preference' else ('Picky',):
        opened = load_sources(source, f'{tmp_path}/picky.py:{name}')
        dataset = ExampleDataset(opened, tasks[kind], 'some_pair', frozenset())
        first, second, last = (dataset[number] for number in range(3))
        assert isinstance(first, Skipped) and first.filtered, first
        assert isinstance(second, Example), second
        if kind == 'unpaired' and name == 'Half':
            # The next row of the last is rejected, so its answer is compared with that of the one after it.
            assert isinstance(last, Example) and ''.join(map(chr, last.unmatched.ids.tolist())) == 'so|well'


def test_rows_with_truncated_answers_are_kept_or_filtered_as_asked(tmp_path: Path) -> None:
    def cut(conversation: Any, train_on: str) -> Example:
        example = encode(conversation, train_on)
        example.responses[0].truncated = 'Long' in text_of(conversation)
        return example

    rows = [{'instruction': 'Long', 'output': 'Sum'}, {'instruction': 'Add', 'output': 'Sum'}]
    sources = load_sources(write_rows(tmp_path / 'a.jsonl', rows), 'Alpaca')
    kept = ExampleDataset(sources, SupervisedTask(cut), 'some_pair', frozenset())
    assert [kept[number].responses[0].truncated for number in (0, 1)] == [True, False]
    dropped = ExampleDataset(sources, SupervisedTask(cut), 'some_pair', frozenset(), drop_truncated=True)
    assert dropped[0].filtered and 'longer than model_cfgs.model_max_length' in dropped[0].reason
    assert isinstance(dropped[1], Example)


def test_probe_names_a_template_without_the_hook(tmp_path: Path) -> None:
    (tmp_path / 'bare.py').write_text(
        'from align_anything.datasets import BaseFormatter\nclass Bare(BaseFormatter):\n    pass\n'
    )
    source = write_rows(tmp_path / 'a.jsonl', [{'x': 1}])
    with pytest.raises(DataError, match='has no format_preference_sample|has no format_supervised_sample'):
        make_dataset(source, f'{tmp_path}/bare.py:Bare').probe()


def test_several_datasets_each_with_its_template(tmp_path: Path, own: str) -> None:
    first = write_rows(tmp_path / 'a.jsonl', [{'instruction': str(number), 'output': 'a'} for number in range(5)])
    second = write_rows(tmp_path / 'b.jsonl', [{'ask': str(number)} for number in range(4)])
    dataset = make_dataset([first, second], ['Alpaca', own], size=[None, 2])
    assert (len(dataset), dataset.sizes) == (7, [5, 2])
    assert [letters(dataset[index]) for index in (0, 4, 5, 6)] == ['0|a', '4|a', '0|yes', '1|yes']
    one_for_all = make_dataset([first, first], 'Alpaca', size=3)
    assert one_for_all.sizes == [3, 3]
    with pytest.raises(DataError, match='size has 3 entries for 2 datasets'):
        make_dataset([first, second], ['Alpaca', own], size=[1, 2, 3])
    with pytest.raises(DataError, match='name at least one'):
        make_dataset([], 'Alpaca')


def test_a_list_of_data_files_belongs_to_a_single_dataset(tmp_path: Path) -> None:
    for name in ('a', 'b', 'c'):
        write_rows(tmp_path / f'{name}.jsonl', [{'instruction': name, 'output': 'x'}])
    one = make_dataset(str(tmp_path), data_files=['a.jsonl', 'c.jsonl'])
    assert [letters(one[index]) for index in range(2)] == ['a|x', 'c|x']
    two = make_dataset([str(tmp_path)] * 2, data_files=['b.jsonl', ['a.jsonl', 'c.jsonl']])
    assert two.sizes == [1, 2]


def test_optional_args_as_texts_are_for_every_dataset(tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_text(json.dumps({'data': [{'instruction': 'a', 'output': 'x'}]}))
    source = str(tmp_path / 'a.json')
    assert make_dataset([source] * 2, optional_args=['field=data']).sizes == [1, 1]
    assert make_dataset([source], optional_args=[{'field': 'data'}]).sizes == [1]


def test_skip_report_lists_each_source_once(tmp_path: Path) -> None:
    report = SkipReport(tmp_path)
    report.add([Skipped('a:1', 'empty answer'), Skipped('a:2', 'zwölf')])
    report.add([Skipped('a:1', 'empty answer'), Skipped('b:1', 'broken')])
    assert len(report) == 3
    lines = [json.loads(line) for line in (tmp_path / 'skipped_samples.jsonl').read_text().splitlines()]
    assert lines == [
        {'source': 'a:1', 'reason': 'empty answer'},
        {'source': 'a:2', 'reason': 'zwölf'},
        {'source': 'b:1', 'reason': 'broken'},
    ]


def test_filtered_rows_are_counted_and_listed_apart(tmp_path: Path) -> None:
    report = SkipReport(tmp_path)
    report.add([Skipped(f'a:{number}', 'rejected', filtered=True) for number in range(90)])
    report.add([Skipped('a:3', 'rejected', filtered=True), Skipped('a:95', 'broken')])
    assert (len(report), report.filtered) == (1, 90)
    report.check(total_rows=100, max_ratio=0.1)
    with pytest.raises(TrainingError, match='1 of 10 rows could not be used'):
        report.check(total_rows=100, max_ratio=0.05)
    listed = [json.loads(line) for line in (tmp_path / 'filtered_samples.jsonl').read_text().splitlines()]
    assert [record['source'] for record in listed] == [f'a:{number}' for number in range(90)]
    assert len((tmp_path / 'skipped_samples.jsonl').read_text().splitlines()) == 1
    # A run that was killed while it wrote goes on with those it had counted.
    with (tmp_path / 'filtered_samples.jsonl').open('a') as file:
        file.write('{"source": "a:9')
    resumed = SkipReport(tmp_path, 1, 80)
    assert (len(resumed), resumed.filtered) == (1, 80)
    resumed.add([Skipped('a:85', 'rejected', filtered=True), Skipped('a:5', 'rejected', filtered=True)])
    assert resumed.filtered == 81
    assert len((tmp_path / 'filtered_samples.jsonl').read_text().splitlines()) == 81


def test_only_the_main_rank_writes_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skips, 'is_main', lambda: False)
    report = SkipReport(tmp_path)
    report.add([Skipped('a:1', 'empty answer')])
    assert len(report) == 1 and not (tmp_path / 'skipped_samples.jsonl').exists()


def test_a_resumed_run_goes_on_with_the_list_it_had_at_its_slice(tmp_path: Path) -> None:
    SkipReport(tmp_path).add([Skipped('a:1', 'x'), Skipped('a:2', 'listed after the slice was saved')])
    resumed = SkipReport(tmp_path, keep=1)
    assert len(resumed) == 1
    resumed.add([Skipped('b:1', 'y')])
    lines = [json.loads(line)['source'] for line in (tmp_path / 'skipped_samples.jsonl').read_text().splitlines()]
    assert lines == ['a:1', 'b:1']
    assert len(SkipReport(tmp_path)) == 0


def test_too_many_skipped_rows_stop_the_run_with_the_list(tmp_path: Path) -> None:
    report = SkipReport(tmp_path)
    report.check(total_rows=100, max_ratio=0.0)
    report.add([Skipped(f'a:{number}', f'empty answer {number % 3}') for number in range(12)])
    report.check(total_rows=100, max_ratio=0.12)
    with pytest.raises(TrainingError) as caught:
        report.check(total_rows=100, max_ratio=0.11)
    message = str(caught.value)
    # Reasons that rows share are told once.
    assert message.startswith('12 of 100 rows') and message.count('- a:') == 3
    assert '- a:0 and 3 more: empty answer 0\n- a:1 and 3 more: empty answer 1\n' in message
    assert str(tmp_path / 'skipped_samples.jsonl') in message


def test_columns_that_no_template_reads_ride_along_where_they_are_asked_for(tmp_path: Path) -> None:
    row = {'instruction': 'Go.', 'output': 'Yes.', 'seed': 7, 'environment_kwargs': {'high': 3}, 'file': 'a.png'}
    row |= {'pictures': [{'bytes': None, 'path': 'a.png'}]}
    sources = load_sources(write_rows(tmp_path / 'rows.jsonl', [row]), 'Alpaca')
    for keeps in (False, True):
        own = [replace(source, keeps_columns=keeps) for source in sources]
        example = ExampleDataset(own, SupervisedTask(encode), 'some_pair', frozenset())[0]
        wanted = {'seed': 7, 'environment_kwargs': {'high': 3}, 'file': 'a.png'} if keeps else {}
        assert example.meta == {'train_on': 'all_assistant', **wanted}
