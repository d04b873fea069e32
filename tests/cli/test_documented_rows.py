"""The JSON of lmms-finetune's and any2any's documents, word for word, looked at and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.cli.main import main
from align_anything.trainers.pairs import PAIRS
from tests.datasets.clips import clip, sound, tone
from tests.datasets.formatters.test_mixed_templates import CONV_FILE, IO_FILE, LMMS_FILE
from tests.datasets.test_media import encoded, noisy
from tests.trainers.runs import lines, sft, succeed

MORE_LMMS = [
    {
        'system_prompt': 'Be brief.',
        'video': ['path/to/video1.mp4', 'path/to/video1.mp4'],
        'num_frames': [4, 6],
        'conversations': [
            {'from': 'user', 'value': 'Compare <video> with <video>'},
            {'from': 'bot', 'value': 'The same.'},
        ],
    },
    {'conversations': [{'from': 'user', 'value': 'No media at all?'}, {'from': 'bot', 'value': 'None.'}]},
]
ANSWERED_IO = IO_FILE.replace('["audio"]', '["text"]').replace('"audio": "path/to/response.wav"', '"text": "A cat."')


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Four data files with media at the paths that the documents name, and their templates."""
    (tmp_path / 'path' / 'to').mkdir(parents=True)
    (tmp_path / 'path/to/video1.mp4').write_bytes(clip([number * 10 for number in range(20)]))
    (tmp_path / 'path/to/image.jpg').write_bytes(encoded(noisy(56), 'JPEG'))
    (tmp_path / 'path/to/response.wav').write_bytes(sound(tone(1.0)))
    files = {
        'lmms.json': LMMS_FILE,
        'more.json': json.dumps(MORE_LMMS),
        # The documents show one row each; a data file is a list of them.
        'conv.json': f'[{CONV_FILE}]',
        'io.json': f'[{IO_FILE}, {ANSWERED_IO}]',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return {
        'train_datasets': f'[{", ".join(files)}]',
        'train_template': '[LMMS, LMMS, Any2Any_Conv, Any2Any_IO]',
        'train_template_kwargs': '[{}, {user_key: user, assistant_key: bot}, {}, {}]',
        'max_skipped_ratio': '0.5',
    }


def test_documented_rows_are_shown_and_trained(
    settings: dict[str, str], tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny('qwen2_5_omni_thinker')
    given = {**settings, 'model_name_or_path': model, 'output_dir': tmp_path / 'seen', 'num_workers': 0}
    words = [str(word) for name, value in given.items() for word in (f'--{name}', value)]
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', 'any_to_text', 'sft', *words])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    page = (tmp_path / 'seen' / 'inspect.html').read_text()
    assert 'You are a helpful assistant.' in shown and 'This video shows a baby crying.<|im_end|>⟧' in shown
    for frames in (10, 4, 6):
        assert f'{frames} frames at' in page, frames
    for text in ('Be brief.', 'No media at all?', 'A cat.&lt;|im_end|&gt;⟧'):
        assert text in page, text
    # Audio as an answer is left out, with the reason.
    assert 'is an answer to train and holds audio media, but' in page

    options = {**settings, 'model_max_length': 1024, 'learning_rate': 1e-4}
    output = succeed(sft(tmp_path / 'run', model, settings['train_datasets'], **options), pair=PAIRS['any_to_text'])
    metrics = lines(tmp_path / 'run' / 'metrics.jsonl')
    assert sum(record['train/samples'] for record in metrics) == 5
    (skipped,) = lines(tmp_path / 'run' / 'skipped_samples.jsonl')
    assert skipped['source'] == 'io.json:1' and 'left out io.json:1' in output


def test_a_file_with_one_row_alone_says_how_to_mend_it(
    settings: dict[str, str], tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'conv.json').write_text(CONV_FILE)
    given = ['--train_datasets', 'conv.json', '--train_template', 'Any2Any_Conv', '--output_dir', 'seen']
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', 'any_to_text', 'sft', '--model_name_or_path', str(tiny('qwen2_5_omni_thinker')), *given])
    assert leaving.value.code == 2
    assert 'A single row goes between [ and ].' in capsys.readouterr().err
