"""The pairs with audio and videos: each leaf trains a tiny model on rows with and without media, on two ranks."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import pytest
from PIL import Image

from align_anything.trainers.pairs import PAIRS, Pair
from tests.trainers.runs import lines, run, sft, succeed, text_rows, write_rows

PICTURE = {'instruction': '<image> what is it?', 'output': 'red', 'images': 'red.png'}
CLIP = {'instruction': '<video> what moves?', 'output': 'nothing', 'videos': 'clip'}
SOUND = {'instruction': '<audio> how high?', 'output': 'low', 'audios': 'tone.wav'}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, a folder of frames and a tone."""
    Image.new('RGB', (56, 56), 'red').save(tmp_path / 'red.png')
    (tmp_path / 'clip').mkdir()
    for number in range(4):
        Image.new('RGB', (56, 56), (60 * number, 0, 0)).save(tmp_path / 'clip' / f'{number}.png')
    with wave.open(str(tmp_path / 'tone.wav'), 'wb') as file:
        file.setparams((1, 2, 16000, 0, 'NONE', ''))
        tone = (int(9000 * math.sin(0.05 * sample)) for sample in range(16000))
        file.writeframes(b''.join(value.to_bytes(2, 'little', signed=True) for value in tone))
    return tmp_path


@pytest.mark.parametrize(
    ('pair', 'family', 'media', 'stage'),
    [
        pytest.param(PAIRS['text_audio_to_text'], 'qwen2_audio', [SOUND], 'z3', marks=pytest.mark.extended),
        pytest.param(PAIRS['text_video_to_text'], 'qwen2_vl', [CLIP], 'z3', marks=pytest.mark.extended),
        (PAIRS['any_to_text'], 'qwen2_5_omni_thinker', [PICTURE, CLIP, SOUND], 'z3'),
        pytest.param(PAIRS['any_to_text'], 'qwen2_5_vl', [PICTURE, CLIP], 'z2', marks=pytest.mark.extended),
    ],
)
def test_rows_of_every_kind_and_of_text_alone_train_on_two_ranks(
    tiny, folder: Path, pair: Pair, family: str, media: list[dict], stage: str
) -> None:
    empty = {'images': None, 'videos': None, 'audios': None}
    columns = [f'--train_template_kwargs.{name}={name}' for name in empty]
    rows = [*media, *text_rows(6 - len(media)), *media]
    data = write_rows(folder / 'rows.jsonl', [{**empty, **row} for row in rows])
    out = folder / 'run'
    options = {'ds_cfgs': f'ds_{stage}_config.json', 'model_max_length': 1024, 'learning_rate': 1e-4}
    options |= {'num_frames': 4} if 'video' in pair.reads else {}
    succeed(sft(out, tiny(family), data, *columns, **options), ranks=2, pair=pair)
    metrics = lines(out / 'metrics.jsonl')
    assert sum(record['train/samples'] for record in metrics) == len(rows)
    assert not (out / 'skipped_samples.jsonl').exists()
    assert all(math.isfinite(record['train/loss']) for record in metrics)


def test_a_model_that_reads_no_audio_cannot_serve_the_pair(tiny, folder: Path) -> None:
    data = write_rows(folder / 'rows.jsonl', text_rows(2))
    ended = run(sft(folder / 'run', tiny('qwen2_vl'), data), pair=PAIRS['text_audio_to_text'])[0]
    assert ended.code == 2 and 'takes no audio' in ended.output
