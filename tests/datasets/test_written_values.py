"""What is learnt is what the file says: no reader's guess of a type changes how an answer is written."""

from __future__ import annotations

import gzip
import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets import make_formatter
from align_anything.datasets.features import Label, Written
from align_anything.datasets.formatters.columns import as_text, number, truth
from align_anything.datasets.sources import load_rows, load_stream

ANSWERS = ['02116', '1.50', '12345678901234567890', 'None', '1E10', 'NA', 'nan', 'True', '-0', '0x1F', '2020-01-01', '']


def answers_of(rows: Any) -> list[Any]:
    return [rows[index]['answer'] for index in range(len(rows))]


def learnt(row: dict[str, Any]) -> str:
    conversation, _ = make_formatter('Instruction').format_supervised_sample(row)
    return conversation[-1]['content']


@pytest.mark.parametrize('name', ['rows.csv', 'rows.tsv', 'rows.csv.gz', 'rows.tsv.gz'])
@pytest.mark.parametrize('streaming', [False, True])
def test_values_of_text_tables_stay_text(tmp_path: Path, name: str, streaming: bool) -> None:
    separator = '\t' if '.tsv' in name else ','
    content = '\ufeffquestion' + separator + 'answer\n'
    content += ''.join(f'"a{separator} b?"{separator}{answer}\n' for answer in ANSWERS)
    packed = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(packed) if name.endswith('.gz') else packed)
    source, cache = str(tmp_path / name), str(tmp_path / 'cache')
    expected = [{'question': f'a{separator} b?', 'answer': answer or None} for answer in ANSWERS]
    if streaming:
        named = list(load_stream(source, cache_dir=cache))
        assert [row for _, row in named] == expected
        assert named[2][0] == f'{source}:3'
    else:
        rows = load_rows(source, cache_dir=cache)
        assert [rows[index] for index in range(len(rows))] == expected
        assert [learnt(rows[index]) for index in range(5)] == ANSWERS[:5]


def test_the_readers_own_arguments_go_first(tmp_path: Path) -> None:
    (tmp_path / 'a.csv').write_text('question;answer\nx;NA\ny;7\n')
    read = load_rows(
        str(tmp_path / 'a.csv'), optional_args={'sep': ';', 'na_values': ['NA']}, cache_dir=str(tmp_path / 'cache')
    )
    assert answers_of(read) == [None, '7']
    (tmp_path / 'b.csv').write_text('1,one\n2,two\n')
    bare = load_rows(
        str(tmp_path / 'b.csv'), optional_args={'names': ['n', 'answer']}, cache_dir=str(tmp_path / 'cache')
    )
    assert [bare[0], bare[1]] == [{'n': '1', 'answer': 'one'}, {'n': '2', 'answer': 'two'}]


@pytest.mark.parametrize('streaming', [False, True])
def test_a_column_that_only_some_files_have_is_not_dropped(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / 'a.csv').write_text('question,answer\nzip?,02116\n')
    (tmp_path / 'b.csv').write_text('answer,question\n1.50,price?\n')
    opened = load_stream(str(tmp_path)) if streaming else load_rows(str(tmp_path))
    rows = [row for _, row in opened] if streaming else [opened[0], opened[1]]
    assert [row['answer'] for row in rows] == ['02116', '1.50']
    (tmp_path / 'c.csv').write_text('question,answer,image\nwhat?,a dog,0.png\n')
    with pytest.raises(
        DataError, match=r'a.csv has the columns question, answer, but .*c.csv has question, answer, im'
    ):
        load_stream(str(tmp_path)) if streaming else load_rows(str(tmp_path))


def test_the_metadata_of_an_image_folder_is_text(tmp_path: Path) -> None:
    (tmp_path / 'metadata.csv').write_text('file_name,answer\n1.png,02116\n,\n')
    assert answers_of(load_rows(str(tmp_path))) == ['02116', None]


NUMBERS = '{"question": "q", "answer": %s}'


@pytest.mark.parametrize('written', ['1.50', '1E10', '-0.0', '1e400', '12345678901234567890', '0.1', '100'])
@pytest.mark.parametrize('form', ['rows.jsonl', 'rows.json', 'field', 'rows.jsonl.gz', 'rows.json.gz', 'comma'])
def test_numbers_of_json_are_written_as_they_stand(tmp_path: Path, written: str, form: str) -> None:
    row = NUMBERS % written
    name = form if '.' in form else 'rows.json'
    text = {'field': f'{{"data": [1], "a": {{}}, "data" : [ {row} ,\n{row}] , "z": 0}}', 'comma': f'[{row}, {row},\n]'}
    content = text.get(form, f'{row}\n{row}\n' if 'jsonl' in form else f' [{row},{row}] ').encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
    options = {'optional_args': ['field=data']} if form == 'field' else {}
    rows = load_rows(str(tmp_path / name), **options)
    assert len(rows) == 2 and [learnt(rows[0]), learnt(pickle.loads(pickle.dumps(rows))[1])] == [written, written]
    assert float(rows[0]['answer']) == float(written)
    streamed = [row for _, row in load_stream(str(tmp_path / name), **options)]
    assert list(map(learnt, streamed)) == [written, written]


def test_packed_json_that_is_damaged_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({'a': 'b' * 1000}).encode())
    for name in ('a.jsonl.gz', 'b.json.gz'):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf'{name}.*cannot be'):
            load_rows(str(tmp_path / name))


def test_typed_tables_give_what_their_types_mean(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            'answer': datasets.ClassLabel(names=['cat', 'dog']),
            'several': datasets.List(datasets.ClassLabel(names=['cat', 'dog'])),
            'single': datasets.Value('float32'),
            'double': datasets.Value('float64'),
            'exact': datasets.Value('decimal128(5, 2)'),
        }
    )
    columns = {
        'answer': [1, 0, -1],
        'several': [[0, 1], [], None],
        'single': [0.1, 2.5, 3.0],
        'double': [0.1, 2.5, 3.0],
        'exact': [Decimal('1.50'), Decimal('2.00'), None],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / 'saved'))
    rows = load_rows(str(tmp_path / 'saved'))
    # As `datasets` gives them to those who compute with them, and by name to those who write them.
    assert answers_of(rows) == [1, 0, None] and isinstance(rows[0]['answer'], Label)
    assert [learnt({'question': 'q', **rows[index]}) for index in (0, 1)] == ['dog', 'cat']
    assert [f'{label}' for label in rows[0]['several']] == ['cat', 'dog']
    assert [as_text(rows[0][name], name) for name in ('single', 'double', 'exact')] == ['0.1', '0.1', '1.50']
    again = pickle.loads(pickle.dumps(rows[0]))
    assert (str(again['answer']), str(again['single'])) == ('dog', '0.1')
    streamed = next(iter(load_stream(str(tmp_path / 'saved'))))[1]
    assert str(streamed['answer']) == 'dog'


def test_numbers_and_truth_values_of_text_tables_are_understood_where_they_are_wanted() -> None:
    assert [number(value, 'x') for value in (1, ' 1.5', Written('2.50'), '-3e2')] == [1, 1.5, 2.5, -300]
    assert [truth(value, 'x') for value in (True, 0, 'TRUE', ' false ', '1', '0')] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    for wrong in (True, 'high', None, 'nan', float('inf'), [1]):
        with pytest.raises(SampleError, match='should be a number'):
            number(wrong, 'x')
    for wrong in (2, 'yes', None, '', 0.5):
        with pytest.raises(SampleError, match='should be true or false'):
            truth(wrong, 'x')
    cost = {'prompt': 'p', 'response_0': 'a', 'response_1': 'b', 'safer_response_id': '1'}
    cost |= {'is_response_0_safe': 'False', 'is_response_1_safe': 'True'}
    _, _, meta = make_formatter('PKUSafeRLHF_Cost').format_preference_sample(cost)
    assert (meta['is_better_safe'], meta['is_worse_safe']) == (False, True)
    unpaired = {'prompt': 'p', 'completion': 'c', 'label': 'false'}
    assert make_formatter('Unpaired').format_supervised_sample(unpaired)[1]['label'] is False
    pair = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'margin': '1.50'}
    assert make_formatter('Preference').format_preference_sample(pair)[2]['margin'] == 1.5
    film = {'video': '["v.mp4"]', 'num_frames': '10'}
    film['conversations'] = '[{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "yes"}]'
    assert make_formatter('LMMS').format_supervised_sample(film)[1]['video'][0].options == {'num_frames': 10}


TURNS = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes.'}]
SPOKEN = [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yes.'}]


@pytest.mark.parametrize('form', ['list', 'text', 'columns', 'text of columns'])
def test_turns_come_as_a_list_a_record_of_lists_or_the_json_text_of_either(form: str) -> None:
    def of(turns: list[dict[str, str]]) -> Any:
        shaped: Any = {key: [turn[key] for turn in turns] for key in turns[0]} if 'columns' in form else turns
        return json.dumps(shaped) if 'text' in form else shaped

    assert make_formatter('Messages').format_supervised_sample({'messages': of(TURNS)})[0] == TURNS
    assert make_formatter('ShareGPT').format_supervised_sample({'conversations': of(SPOKEN)})[0] == TURNS
    assert make_formatter('LMMS').format_supervised_sample({'conversations': of(SPOKEN)})[0] == TURNS
    assert make_formatter('Any2Any_Conv').format_supervised_sample({'conversations': of(TURNS)})[0] == TURNS
    row = {'prompt': of(TURNS[:1]), 'chosen': of(TURNS[1:]), 'rejected': 'No.'}
    better, worse, _ = make_formatter('Preference').format_preference_sample(row)
    assert better == TURNS and worse == [TURNS[0], {'role': 'assistant', 'content': 'No.'}]


@pytest.mark.parametrize('answer', ['[1, 2]', '{"a": 1}', '[', '{"role": "x"}', '[]'])
def test_an_answer_that_looks_like_json_stays_a_text(answer: str) -> None:
    row = {'prompt': 'Write JSON.', 'chosen': answer, 'rejected': 'No.'}
    assert make_formatter('Preference').format_preference_sample(row)[0][-1]['content'] == answer
    row = {'instruction': 'Write JSON.', 'output': answer}
    assert learnt(row) == answer


@pytest.mark.parametrize(
    'turns', ['not json', '[1', {'role': ['user'], 'content': ['Hi', 'Yes']}, {'role': 'user', 'content': 'x'}, {}, 3]
)
def test_turns_of_no_such_form_are_refused(turns: Any) -> None:
    with pytest.raises(SampleError, match='should be a list'):
        make_formatter('Messages').format_supervised_sample({'messages': turns})


@pytest.mark.parametrize(
    'content', ['17', [{'type': 'text', 'text': '17'}], [{'type': 'text', 'text': t} for t in '17']]
)
def test_an_answer_in_parts_is_a_golden_one_in_text(content: Any) -> None:
    turns = [{'role': 'user', 'content': 'Which?'}, {'role': 'assistant', 'content': content}]
    assert make_formatter('Messages').format_prompt_only_sample({'messages': turns})[1]['ground_truth'] == '17'
