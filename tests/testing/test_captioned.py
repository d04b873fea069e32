"""Rows say what their media show, and prompts name it or leave it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.testing import tones
from tests.trainers.runs import lines


@pytest.mark.parametrize('preferred', [None, 'high'])
def test_rows_name_what_is_in_them_or_leave_it_open(preferred: str | None, tmp_path: Path) -> None:
    file = tones.TONES.write(tmp_path, 40, preferred=preferred)
    rows = lines(file)
    for row in rows:
        heard, other = (_pitch(tmp_path / row[name]) for name in ('audio', 'rejected'))
        assert heard == row['word'] != other
        assert row['prompt'] in ('a tone', f'a {heard} tone')
    words, prompts = {row['word'] for row in rows}, [row['prompt'] for row in rows]
    assert words == {*tones.PITCHES} and 10 < prompts.count('a tone') < 30
    in_open_ones = {row['word'] for row in rows if row['prompt'] == 'a tone'}
    assert in_open_ones == ({preferred} if preferred else {*tones.PITCHES})


def test_shuffled_prompts_are_those_of_others(tmp_path: Path) -> None:
    own, others = (tones.TONES.write(tmp_path / str(shuffled), 40, shuffled=shuffled) for shuffled in (False, True))
    rows, shuffled = lines(own), lines(others)
    assert [row['word'] for row in rows] == [row['word'] for row in shuffled]
    prompts = [[row['prompt'] for row in some] for some in (rows, shuffled)]
    assert prompts[0] != prompts[1] and sorted(prompts[0]) == sorted(prompts[1])


def _pitch(file: Path) -> str | None:
    import soundfile

    samples, rate = soundfile.read(file, dtype='float32')
    return tones.pitch_of(samples, rate)
