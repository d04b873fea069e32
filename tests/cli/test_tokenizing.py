"""`align-anything tokenize-media`: rows with codes in place of media, which train to the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.cli.main import main
from align_anything.testing.emitting import write_digit_rows
from align_anything.trainers.pairs import PAIRS
from tests.trainers.runs import lines, sft, succeed, weights

Emitting = Callable[..., Path]
SHOWN = {'template': 'Messages', 'train_template_kwargs': '{images: ""}'}


def test_rows_with_codes_train_to_the_same_weights(emitting: Emitting, tmp_path: Path, capfd) -> None:
    rows, out = write_digit_rows(tmp_path / 'digits', 4), tmp_path / 'coded.jsonl'
    argv = sft(tmp_path / 'one', emitting('drawing'), rows, **SHOWN)
    succeed(argv, pair=PAIRS['text_to_image'])
    rows.write_text(rows.read_text() + '{"messages": [{"role": "user", "content": "no answer"}]}\n')
    with pytest.raises(SystemExit, match='0'):
        main(['tokenize-media', 'text_to_image', 'sft', *argv, '--out', str(out)])
    told = capfd.readouterr()
    assert f'4 rows with codes: {out}' in told.out and '1 of 5 rows are left out' in told.err
    medium = lines(out)[0]['messages'][1]['content'][0]['image']
    assert torch.tensor(medium['codes']).shape == (1, 4, 4) and medium['codec']
    succeed(sft(tmp_path / 'two', emitting('drawing'), out, template='Messages'), pair=PAIRS['text_to_image'])
    one, two = (weights(tmp_path / name / 'slice_end') for name in ('one', 'two'))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_pairs_are_written_as_pairs(emitting: Emitting, tmp_path: Path) -> None:
    rows, out = write_digit_rows(tmp_path / 'digits', 2), tmp_path / 'coded.jsonl'
    mapped = '{answers: image, prompt: question, chosen: picture}'
    argv = sft(tmp_path / 'run', emitting('drawing'), rows, template='Preference', train_template_kwargs=mapped)
    with pytest.raises(SystemExit, match='0'):
        main(['tokenize-media', 'text_to_image', 'dpo', *argv, '--out', str(out)])
    one = json.loads(out.read_text().splitlines()[0])
    chosen, rejected = (one[key][-1]['content'][0]['image']['codes'] for key in ('chosen', 'rejected'))
    assert one['chosen'][0] == one['rejected'][0] and chosen != rejected


@pytest.mark.parametrize(
    ('algorithm', 'model', 'reason'),
    [('kto', 'drawing', 'choose sft, dpo or grpo'), ('sft', 'llama', 'writes no image')],
)
def test_what_has_no_codes_is_refused(
    algorithm: str, model: str, reason: str, emitting: Emitting, tiny: Callable[..., Path], tmp_path: Path, capfd
) -> None:
    rows = write_digit_rows(tmp_path / 'digits', 2)
    source = emitting(model) if model == 'drawing' else tiny(model)
    argv = sft(tmp_path / 'run', source, rows, **SHOWN)
    with pytest.raises(SystemExit, match='2'):
        main(['tokenize-media', 'text_to_image', algorithm, *argv, '--out', str(tmp_path / 'out.jsonl')])
    assert reason in capfd.readouterr().err and not (tmp_path / 'out.jsonl').exists()
