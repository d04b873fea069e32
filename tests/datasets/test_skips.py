"""A row that is left out says why: in the list, once for each kind of reason while the run goes, counted at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align_anything.core.types import Skipped
from align_anything.datasets import skips
from align_anything.datasets.skips import SkipReport, kind_of_reason
from tests.trainers.runs import lines, sft, succeed, write_rows

Tiny = Callable[..., Path]

TURN = {'role': 'user', 'content': 'sun'}
REPLY = {'role': 'assistant', 'content': 'sea'}
EMPTY = {'role': 'assistant', 'content': ' '}


@pytest.fixture
def warned(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The warnings since it was last asked."""
    yield lambda: capsys.readouterr().err.split('[align-anything] WARNING ')[1:]


def test_reasons_alike_are_one() -> None:
    one = kind_of_reason("image 'a/b.png' does not exist: 12 x 7")
    assert one == kind_of_reason("image 'c d.png' does not exist: 3 x 100") == "image '…' does not exist: N x N"


def test_a_kind_of_reason_is_told_once_and_counted_at_the_end(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    report = SkipReport(tmp_path)
    report.conclude()
    assert warned() == []
    report.add([Skipped('a:1', 'turn 1 is empty.'), Skipped('a:2', 'turn 3 is empty.'), Skipped('a:3', 'broken')])
    first, second = warned()
    assert first.startswith('left out a:1: turn 1 is empty. ') and second.startswith('left out a:3: broken ')
    report.add([Skipped('a:1', 'turn 1 is empty.'), Skipped('b:1', 'turn 5 is empty.')])
    assert warned() == []
    report.conclude()
    (end,) = warned()
    assert end.startswith('rows left out: 4, ') and str(tmp_path / 'skipped_samples.jsonl') in end
    assert end.split('\n')[1:3] == ['- 3 × turn N is empty.', '- 1 × broken']


def test_a_resumed_run_does_not_tell_again_but_counts_all(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    SkipReport(tmp_path).add([Skipped('a\u2028:1', 'broken')])
    warned()
    report = SkipReport(tmp_path, keep=1)
    report.add([Skipped('a:2', 'broken')])
    assert warned() == []
    report.conclude()
    assert '- 2 × broken' in warned()[0]


def test_reasons_without_end_do_not_fill_the_screen(
    tmp_path: Path, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = SkipReport(tmp_path)
    report.add([Skipped(f'a:{number}', 'x' * (number + 1)) for number in range(25)])
    assert len(warned()) == skips.SHOWN
    report.conclude()
    assert len(warned()[0].strip().split('\n')) == 1 + skips.SHOWN
    monkeypatch.setattr(skips, 'is_main', lambda: False)
    report.add([Skipped('b', 'another')])
    report.conclude()
    assert warned() == []


def test_what_a_run_says_of_rows_whose_labels_would_all_be_masked(tiny: Tiny, tmp_path: Path) -> None:
    long = {'role': 'user', 'content': 'moon ' * 200}
    reasons = {
        'turn 1 is an empty answer': [[TURN, EMPTY], [TURN, {**EMPTY, 'content': ''}]],
        'turn 3 is an empty answer': [[TURN, REPLY, TURN, EMPTY]],
        'the conversation has no assistant turn': [[TURN]],
        'tokens, the limit is 32: raise model_cfgs.model_max_length': [[long, REPLY]],
    }
    bad = [turns for rows in reasons.values() for turns in rows]
    rows = write_rows(tmp_path / 'rows.jsonl', [{'messages': turns} for turns in [[TURN, REPLY], *bad]])
    settings = {'train_on': 'last', 'max_skipped_ratio': 1.0, 'model_max_length': 32}
    output = succeed(sft(tmp_path / 'run', tiny('llama'), rows, template='Messages', **settings))
    listed = [record['reason'] for record in lines(tmp_path / 'run' / 'skipped_samples.jsonl')]
    told = [line for line in output.splitlines() if 'left out' in line]
    for reason, skipped in reasons.items():
        assert sum(reason in record for record in listed) == len(skipped), reason
    # The order of the rows is the sampler's, and an empty answer is one kind of reason in whichever turn.
    for words in ('is an empty answer. (further', 'no assistant turn', 'raise model_cfgs.model_max_length'):
        assert sum(words in line for line in told) == 1, words
    assert 'rows left out: 5, ' in output and '- 3 × turn N is an empty answer.' in output
