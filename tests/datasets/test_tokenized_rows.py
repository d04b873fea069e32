"""Files of token ids, as the tokenizing scripts for Janus and Chameleon write them, become texts and codes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.sources import load_rows, load_stream
from align_anything.datasets.template_registry import make_formatter
from align_anything.testing.tiny.tokenizers import make_tokenizer
from tests.datasets.formatters.test_media_answer_templates import answer, asked, said

JANUS = ['<begin_of_image>', '<|User|>', '<|Assistant|>']
CODES = [f'IMGIMG{letter}Z' for letter in 'ABCDEFGHI']
CHAMELEON = ['<boi>', '<eoi>', *CODES]


@pytest.fixture(scope='module')
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('janus')
    make_tokenizer(300, (), pad='<pad>', eos='</s>', bos='<s>', extra=JANUS).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def chameleon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('chameleon')
    make_tokenizer(300, (), pad='<pad>', eos='</s>', bos='<s>', extra=CHAMELEON).save_pretrained(folder)
    return folder


def ids(folder: Path, *pieces: str | list[int]) -> list[int]:
    """The ids of texts, and numbers as they are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer.encode(piece) if isinstance(piece, str) else piece for piece in pieces]
    return [token for piece in encoded for token in piece]


def bound(folder: Path, **options: Any) -> BoundTemplate:
    return BoundTemplate(make_formatter('Tokenized', {'tokenizer': str(folder), **options}))


def drawn(*codes: int) -> str:
    return '<boi>' + ''.join(CODES[code] for code in codes) + '<eoi>'


def coded(*codes: int, side: int = 2) -> dict[str, Any]:
    return {'codes': list(codes), 'size': [side, side]}


def rows_of(tmp_path: Path, *records: dict[str, Any]) -> list[dict[str, Any]]:
    torch.save(list(records), tmp_path / 'train.pt')
    rows = load_rows(str(tmp_path / 'train.pt'))
    return [rows[index] for index in range(len(rows))]


def test_janus_files_hold_a_prompt_and_bare_codes_behind_it(janus: Path, tmp_path: Path) -> None:
    prompt = ids(janus, '<s><|User|>: A fox\n\n<|Assistant|>:<begin_of_image>')
    full = torch.tensor([*prompt, 0, 999, 7, 1])
    labels = torch.where(torch.arange(len(full)) < len(prompt), -100, full)
    (row,) = rows_of(tmp_path, {'input_ids': full, 'labels': labels, 'modality': 'generation'})
    expected = [asked('A fox'), answer(coded(0, 999, 7, 1))]
    template = bound(janus)
    assert said(template.format_supervised_sample(row)[0]) == expected
    assert said(template.format_prompt_only_sample(row)[0]) == expected[:1]
    pair = {'better_input_ids': full, 'worse_input_ids': torch.tensor([*prompt, 4, 4, 4, 4]), 'task': 'generation'}
    (row,) = rows_of(tmp_path, pair)
    better, worse, _ = template.format_preference_sample(row)
    assert said(better) == said(template.format_supervised_sample(row)[0]) == expected
    assert said(worse) == [asked('A fox'), answer(coded(4, 4, 4, 4))]


def test_chameleon_files_hold_codes_among_the_words(chameleon: Path, tmp_path: Path) -> None:
    text = f'<s>USER: \n{drawn(8, 0, 1, 2)}Repaint it\nASSISTANT:Here: {drawn(1, 1, 2, 2)} and {drawn(3, 3, 3, 3)}</s>'
    (row,) = rows_of(tmp_path, {'input_ids': torch.tensor(ids(chameleon, text, '<pad><pad>'))})
    assert said(bound(chameleon).format_supervised_sample(row)[0]) == [
        asked(coded(8, 0, 1, 2), 'Repaint it'),
        answer('Here:', coded(1, 1, 2, 2), 'and', coded(3, 3, 3, 3)),
    ]
    words = {
        'better_input_ids': torch.tensor(ids(chameleon, '<s>USER: \nHi\nASSISTANT:Hello</s>')),
        'worse_input_ids': torch.tensor(ids(chameleon, '<s>USER: \nHi\nASSISTANT:No</s>')),
    }
    (row,) = rows_of(tmp_path, words)
    better, worse, _ = bound(chameleon).format_preference_sample(row)
    assert (said(better), said(worse)) == ([asked('Hi'), answer('Hello')], [asked('Hi'), answer('No')])
    assert not bound(chameleon).check_equal(row)


def test_prompts_alone_end_where_the_answer_would_begin(chameleon: Path) -> None:
    row = {'input_ids': ids(chameleon, '<s>USER: \nDraw\nASSISTANT:</s>')}
    assert said(bound(chameleon).format_prompt_only_sample(row)[0]) == [asked('Draw')]
    with pytest.raises(SampleError, match='ends before the answer'):
        bound(chameleon).format_supervised_sample(row)


def test_other_words_that_open_turns_are_options(chameleon: Path) -> None:
    row = {'input_ids': ids(chameleon, '<s>Q> Draw A> ', drawn(1, 2, 3, 4))}
    with pytest.raises(SampleError, match='template options user and assistant'):
        bound(chameleon).format_supervised_sample(row)
    conversation, _ = bound(chameleon, user='Q>', assistant='A>').format_supervised_sample(row)
    assert said(conversation) == [asked('Draw'), answer(coded(1, 2, 3, 4))]


def test_what_cannot_be_read_back_is_refused(chameleon: Path, janus: Path, tmp_path: Path) -> None:
    several = 'USER: \nA\nASSISTANT:B\nUSER: \nC\nASSISTANT:D'
    for text, message in ((several, 'cannot be told'), ('USER: A\nASSISTANT:' + drawn(1, 2), '2 codes, which make no')):
        with pytest.raises(SampleError, match=message):
            bound(chameleon).format_supervised_sample({'input_ids': ids(chameleon, text)})
    with pytest.raises(SampleError, match='should be a list of token ids'):
        bound(chameleon).format_supervised_sample({'input_ids': [1, -100]})
    with pytest.raises(DataError, match='needs the option tokenizer'):
        make_formatter('Tokenized').format_supervised_sample({'input_ids': [1]})
    with pytest.raises(DataError, match='no tokenizer can be read'):
        bound(tmp_path).format_supervised_sample({'input_ids': [1]})
    with pytest.raises(SampleError, match="no column 'question'.*are for the template Tokenized"):
        make_formatter('GSM8K').format_supervised_sample({'input_ids': [1], 'labels': [1]})


class Harm:
    def __reduce__(self) -> Any:
        return Path.touch, (Path('harmed'),)


def test_tensor_files_run_no_code_and_hold_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {
        'code.pt': ([{'a': Harm()}], 'cannot be read as tensors'),
        'record.pt': ({'a': torch.ones(1)}, 'holds a dict, not a list of rows'),
        'list.pt': ([{}, torch.ones(1)], 'list.pt:2: entry 2 of the list is a Tensor'),
    }
    for name, (value, message) in wrong.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(DataError, match=message):
            load_rows(str(tmp_path / name))
    assert not (tmp_path / 'harmed').exists()
    (tmp_path / 'text.pt').write_text('no tensors')
    with pytest.raises(DataError, match='cannot be read as tensors'):
        load_rows(str(tmp_path / 'text.pt'))


def test_tensor_files_are_found_in_folders_and_read_as_streams(tmp_path: Path) -> None:
    torch.save([{'input_ids': torch.arange(3), 'pixels': torch.ones(2), 'task': 'x'}], tmp_path / 'a.pt')
    for rows in (load_rows(str(tmp_path)), load_rows(str(tmp_path), data_files='a.pt')):
        assert rows.row_name(0) == f'{tmp_path}/a.pt:1'
        row = rows[0]
        assert row['input_ids'] == [0, 1, 2] and row['task'] == 'x' and torch.equal(row['pixels'], torch.ones(2))
    assert [name for name, _ in load_stream(str(tmp_path / 'a.pt'))] == [f'{tmp_path}/a.pt:1']
    (tmp_path / 'b.jsonl').write_text('{"prompt": "A"}\n')
    assert load_rows(str(tmp_path))[0] == {'prompt': 'A'}, 'tensors beside a data file are none of its rows'


def test_the_template_has_all_hooks() -> None:
    formatter: type[BaseFormatter] = type(make_formatter('Tokenized'))
    assert len(formatter.hooks()) == 5
