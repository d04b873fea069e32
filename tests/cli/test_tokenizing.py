"""`align-anything tokenize-media`: rows with codes in place of media, which train to the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.cli.main import main
from align_anything.datasets.formatters.base import make_formatter
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


def test_what_rewards_read_goes_with_prompts(emitting: Emitting, tmp_path: Path) -> None:
    rows, out = write_digit_rows(tmp_path / 'digits', 2), tmp_path / 'coded.jsonl'
    how = {'template': 'Prompts', 'train_template_kwargs': '{prompt: question, answer: digit, keep_columns: true}'}
    online = ['--max_new_tokens', '20', '--reward_functions', '[jpeg_size]', '--num_generations', '2']
    argv = sft(tmp_path / 'run', emitting('drawing'), rows, *online, **how)
    with pytest.raises(SystemExit, match='0'):
        main(['tokenize-media', 'text_to_image', 'grpo', *argv, '--out', str(out)])
    first, given = lines(out)[0], lines(rows)[0]
    assert first['ground_truth'] == first['digit'] == given['digit'] and first['picture'] == given['picture']
    assert first['messages'][0]['content'][0]['text'] == given['question']
    formatter = make_formatter('Prompts', {'keep_columns': True})
    turns, meta = formatter.format_prompt_only_sample(first)
    assert turns[0]['content'] == first['messages'][0]['content'] and meta['digit'] == given['digit']
    assert meta['ground_truth'] == given['digit']


def test_a_folder_is_no_file_to_write(emitting: Emitting, tmp_path: Path, capfd) -> None:
    argv = sft(tmp_path / 'run', emitting('drawing'), write_digit_rows(tmp_path / 'digits', 2), **SHOWN)
    with pytest.raises(SystemExit, match='2'):
        main(['tokenize-media', 'text_to_image', 'sft', *argv, '--out', str(tmp_path)])
    told = capfd.readouterr().err
    assert 'is a folder; name a file' in told and 'Traceback' not in told


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
