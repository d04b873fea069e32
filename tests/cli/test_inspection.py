"""The report shows the data as they are trained on, and nothing in them can escape into the page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align_anything.cli.inspection.figures import Bin, histogram
from align_anything.cli.inspection.page import _pieces
from align_anything.cli.main import main
from align_anything.core.types import Audio, Embedding, Video
from align_anything.reporting.html import Figure, figures_of
from tests.harness.once import once
from tests.models.samples import assistant, load, multi_turn

Tiny = Callable[..., Path]
EVIL = '<script>alert("x")</script>[red]&amp;'


class Page(HTMLParser):
    """The tags of a page, with their attributes and the text under each class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ''
        self.by_class: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img', 'br'):
            self._open.append(dict(attrs).get('class') or '')

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self.by_class.setdefault(self._open[-1], []).append(data)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def inspect(pair: str, model: Path, data: Path, output: Path, template: str, *more: str) -> Page:
    words = ['--model_name_or_path', str(model), '--train_datasets', str(data), '--train_template', template]
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', pair, 'sft', *words, '--output_dir', str(output), '--num_workers', '0', *more])
    assert leaving.value.code == 0
    return Page((output / 'inspect.html').read_text())


def test_a_run_with_images(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number in range(6):
        Image.new('RGB', (700, 350), (number * 40, 0, 0)).save(tmp_path / f'{number}.png')
        rows.append({'image': f'{number}.png', 'q': f'which {EVIL} {number}?', 'a': f'red {number}'})
    rows.append({'image': 'missing.png', 'q': 'which?', 'a': 'none'})
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    rows.append({'image': 'broken.png', 'q': 'which?', 'a': 'none'})
    # Half of a surrogate pair, which no file can hold.
    rows.append({'\ud800': 'x'})
    data = write(tmp_path / 'rows.jsonl', rows)
    columns = '{prompt: q, response: a, images: image}'
    page = inspect(
        *('text_image_to_text', tiny('llava'), data, tmp_path / 'out', 'Instruction'),
        *('--train_template_kwargs', columns, '--model_max_length', '400'),
    )
    out = capsys.readouterr().out

    # llava's tiny tower makes (56 / 14)^2 = 16 tokens of an image, 6 * 16 = 96 of them all.
    assert 'usable' in page.text and '96 (' in page.text and '6 image' in page.text
    assert page.by_class['media'] == ['<media × 16>'] * 6
    # The answer of each turn and what ends it, nothing else.
    assert [text.strip('⟦ ⟧') for text in page.by_class['trained']] == [f'red {n}</s>' for n in range(6)]
    pictures = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
    assert len(pictures) == 6
    size = Image.open(io.BytesIO(base64.b64decode(pictures[1].removeprefix('data:image/jpeg;base64,')))).size
    assert size == (320, 160)
    # Both turns as a person reads them, evil and all.
    assert sum(EVIL in text for text in page.by_class['text']) == 6
    assert not any(tag == 'script' for tag, _ in page.tags)
    assert not any((attrs.get('src') or attrs.get('href') or 'data:').startswith('http') for _, attrs in page.tags)
    for word in ('missing.png', 'does not exist', 'broken.png', 'is not an image'):
        assert word in page.text and (word in out or 'png' in word)
    assert '3 of 9 rows would be skipped; data_cfgs.max_skipped_ratio 0.05 allows fewer' in page.text
    assert 'the run would stop' in ' '.join(out.split())
    assert 'tokens of a row' in out and '█' in out and 'red 0</s>⟧' in out and '<media × 16>' in out
    assert '[red]' in out and str(tmp_path / 'out' / 'inspect.html') in ''.join(out.split('\n'))


def test_numbers_rows_and_secrets(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{'instruction': f'{n}', 'output': 'word ' * (n + 1)} for n in range(120)]
    data = write(tmp_path / 'rows.jsonl', rows)
    report = tmp_path / 'there' / 'page.html'
    with pytest.raises(SystemExit):
        main(
            [
                *('inspect', 'text_to_text', 'sft', '--rows', '100', '--report', str(report)),
                *('--model_name_or_path', str(tiny('qwen2')), '--output_dir', str(tmp_path / 'out')),
                *('--train_datasets', str(data), '--train_template', 'Instruction', '--num_workers', '1'),
                *('--eval_datasets', str(data), '--eval_template', 'Instruction', '--eval_size', '5'),
                *('--log_project', 'https://me:hunter2@host/x', '--model_max_length', '64'),
            ]
        )
    page = Page(report.read_text())
    assert not (tmp_path / 'out').exists()
    assert 'hunter2' not in page.text and 'https://host/x' in page.text
    # 100 of the 120 rows, 50 of them shown, every second one; all 5 of the other set.
    sources = [text for text in re.findall(r'rows\.jsonl:(\d+)', page.text)]
    assert sources == [str(n) for n in range(1, 101, 2)] + ['1', '2', '3', '4', '5']
    # From the row of 40 words on or so, nothing else fits in.
    truncated = re.search(r'truncated rows\s*(\d+), longer than model_cfgs\.model_max_length', page.text)
    assert truncated and 0 < int(truncated[1]) < 100
    assert 'Training' in page.text and 'Evaluation' in page.text
    capsys.readouterr()


def test_a_stream(tiny: Tiny, tmp_path: Path) -> None:
    data = write(tmp_path / 'rows.jsonl', [{'instruction': 'ab', 'output': f'{n}'} for n in range(5)])
    page = inspect(
        *('text_to_text', tiny('qwen2'), data, tmp_path / 'out', 'Instruction', '--rows', '3'),
        *('--streaming', 'True', '--max_steps', '1'),
    )
    assert 'a stream' in page.text and len(page.by_class['trained']) == 3


def test_data_that_stop_a_run_stop_it_here(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / 'rows.jsonl', [{'other': 'x'}])
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                *('inspect', 'text_to_text', 'sft', '--model_name_or_path', str(tiny('qwen2'))),
                *('--train_datasets', str(data), '--train_template', 'Instruction', '--output_dir', str(tmp_path)),
            ]
        )
    assert leaving.value.code == 2
    assert 'none of the first 1 rows' in capsys.readouterr().err


def test_videos_and_audio() -> None:
    clip = Video(np.zeros((20, 64, 32, 3), np.uint8), np.arange(20) / 2, 30.0, Audio(np.zeros(800, np.float32), 8000))
    picture, sound = figures_of('video', clip)
    assert len(picture.images) == 8 and not picture.sound
    assert picture.caption == 'video 32 × 64, 20 frames at 0.00, 0.50, …, 9.50 s, 8 of them shown'
    assert sound.caption == 'audio 0.1 s at 8000 Hz' and not sound.images
    tone = np.sin(np.arange(12 * 4000)).astype(np.float32)
    (figure,) = figures_of('audio', Audio(tone, 4000))
    content = base64.b64decode(figure.sound.removeprefix('data:audio/wav;base64,'))
    # The first ten seconds: 10 * 4000 samples of two bytes behind a header of 44.
    assert len(content) == 44 + 80_000 and 'the first 10 of them' in figure.caption
    assert np.allclose(np.frombuffer(content[44:], '<i2') / 32767, tone[:40_000], atol=1e-4)
    assert figures_of('<b>', object()) == [Figure('<b>')], 'named where there is nothing to see'
    assert figures_of('video', Embedding(tone)) == [Figure(f'video, as an embedding of {len(tone)} numbers')]


def test_histograms() -> None:
    assert histogram([]) == [] and histogram([7, 7]) == [Bin(7, 7, 2)]
    # 0 to 24 is 25 values, in 12 bins of ceil(25 / 12) = 3: 0-2, 3-5, ... and what is left, 24.
    bins = histogram([0, 1, 2, 3, 24])
    assert bins[0] == Bin(0, 2, 3) and bins[1] == Bin(3, 5, 1) and bins[-1] == Bin(24, 24, 1)
    assert sum(item.rows for item in bins) == 5 and len(bins) == 9
    assert bins[0].label == '0–2' and Bin(4, 4, 1).label == '4'


def test_every_sequence_of_each_answer_of_a_pair_is_shown(tiny: Tiny) -> None:
    """Under Qwen3's template earlier answers have sequences of their own."""
    spec = load(tiny('qwen3'))
    turns = multi_turn()
    start = next(number for number, turn in enumerate(turns) if turn['role'] == 'assistant')
    example = spec.encode_group([turns, [*turns[:start], assistant('No idea.')]])
    assert example.responses[0].earlier and not example.responses[1].earlier
    answers = [turn['content'][0]['text'] for turn in turns if turn['role'] == 'assistant']
    shown = {name: ''.join(text for kind, text in runs if kind == 'trained') for name, runs in _pieces(example, spec)}
    assert list(shown) == ['prompt', 'answer 1', 'answer 2'] and not shown['prompt']
    assert all(text in shown['answer 1'] for text in answers) and 'No idea.' in shown['answer 2']


def test_a_prompt_that_leaves_no_capacity_is_left_out_as_the_run_would(tiny: Tiny, tmp_path: Path) -> None:
    data = write(tmp_path / 'rows.jsonl', [{'prompt': 'sun ' * number} for number in (1, 40)])
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                *('inspect', 'text_to_text', 'grpo', '--model_name_or_path', str(tiny('llama'))),
                *('--train_datasets', str(data), '--train_template', 'Prompts', '--output_dir', str(tmp_path)),
                *('--num_workers', '0', '--model_max_length', '256', '--max_new_tokens', '128'),
                *('--reward_functions', '[format]'),
            ]
        )
    assert leaving.value.code == 0
    assert 'at most 128 fit beside max_new_tokens' in Page((tmp_path / 'inspect.html').read_text()).text


def test_pictures_in_answers_are_shown_and_their_codes_counted(
    shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from align_anything.testing import emitting

    model = once(shared_cache, 'inspected-drawing', lambda folder: emitting.drawing_model(folder, layers=1, hidden=32))
    rows = emitting.write_digit_rows(tmp_path / 'digits', 4)
    page = inspect('text_to_image', model, rows, tmp_path / 'out', 'Messages')
    pictures = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
    assert len(pictures) == 4 and len(set(pictures)) == 4
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(',')[2]))) as picture:
        assert picture.size == (96, 96), 'eight pixels would be a speck'
    # Each digit is 4 x 4 codes.
    assert sum('<image codes × 16>' in text for text in page.by_class['trained']) == 4
    assert '4 image' in page.text and re.search(r'media tokens\s*64 \(', page.text)
    assert '⟦<image codes × 16>⟧' in capsys.readouterr().out
