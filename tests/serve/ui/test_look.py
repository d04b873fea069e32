"""Rows through their template, before there is a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from align_anything.serve.ui.look import main


def page(folder: Path, *words: str, pair: str = 'text_image_to_text', algorithm: str = 'sft') -> str:
    main([pair, algorithm, str(folder / 'rows.html'), *words])
    return (folder / 'rows.html').read_text()


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')
    row = {'instruction': 'What is <b>it</b>?', 'output': 'Red.', 'image': 'red.png', 'lesson': 7}
    content = [row, {**row, 'image': 'nowhere.png'}, {**row, 'output': ''}, {**row, 'instruction': 'Again?'}]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in content))
    return tmp_path


def test_rows_are_shown_with_their_media_and_those_left_out_with_why(rows: Path) -> None:
    words = ['--train_datasets', 'rows.jsonl', '--train_template', 'Instruction']
    shown = page(rows, '1', '50', *words)
    assert 'What is &lt;b&gt;it&lt;/b&gt;?' in shown and 'Again?' in shown and 'image 40 × 30' in shown
    assert 'data:image/jpeg' in shown and 'nowhere.png' in shown and '<script' not in shown
    for name, value in {'rows': '4', 'read here': '4', 'usable': '2', 'skipped': '2', 'media': '2 image'}.items():
        assert f'<th>{name}</th><td>{value}' in shown, name
    later = page(rows, '4', '1', *words)
    assert '<h3>4: ' in later and '<th>read here</th><td>1<' in later and 'What is' not in later


@pytest.mark.parametrize('algorithm', ['dpo', 'kto', 'grpo'])
def test_preferences_and_prompts_are_rows_too(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {'prompt': 'Which?', 'chosen': 'This one.', 'rejected': 'None.'}
    (tmp_path / 'rows.jsonl').write_text(json.dumps(row) + '\n' + json.dumps({**row, 'prompt': 'Why?'}) + '\n')
    words = ['--train_datasets', 'rows.jsonl', '--train_template', 'Preference']
    shown = page(tmp_path, '1', '5', *words, pair='text_to_text', algorithm=algorithm)
    assert 'Which?' in shown and ('None.' in shown) == (algorithm != 'grpo')


def test_what_is_wrong_is_said_without_a_traceback(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (['--train_datasets', 'nothing.jsonl', '--train_template', 'Instruction'], 'nothing.jsonl'),
        (['--train_datasets', 'rows.jsonl', '--train_template', 'Instructio'], "Did you mean 'Instruction'"),
        (['--train_dataset', 'rows.jsonl'], 'required'),
    ):
        with pytest.raises(SystemExit) as leaving:
            page(rows, '1', '5', *words)
        assert leaving.value.code == 2 and told in capsys.readouterr().err
