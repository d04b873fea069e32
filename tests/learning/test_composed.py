"""Models composed of parts that were never trained learn to name what is shown, by the trainer that users call.

They name digits and tones; with an encoder of videos the way in which a bar moves, which no frame of it tells.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from align_anything.models.composed.register import register
from align_anything.testing.tiny import build
from align_anything.testing.tiny.encoders import build_encoder
from align_anything.trainers.pairs import PAIRS
from tests.learning import lessons, tasks
from tests.learning.lessons import directions, pitches, rotated, turned_round
from tests.learning.school import accuracy, ask, examine, open_media_model
from tests.learning.tasks import NUMBERS, SIDE, Question, turn
from tests.trainers.runs import run, sft

PAIR = PAIRS['any_to_text']
# Each encoder once, and each projector; what makes few tokens of a medium learns more slowly.
LESSONS: dict[str, tuple[str, str, dict[str, int]]] = {
    'vit': ('mlp', 'wav2vec2', {}),
    'clip': ('linear', 'whisper', {}),
    'dinov2': ('transformer', 'wavlm', {'num_tokens': 8, 'num_heads': 2}),
    'siglip': ('expand', 'hubert', {'num_tokens': 16}),
    'dinov2_with_registers': ('linear', 'clap', {}),
}
STEPS = {
    'composed': {
        'vit': 400,
        'clip': 400,
        'dinov2': 600,
        'siglip': 1000,
        'dinov2_with_registers': 400,
        'videomae': 100,
    }
}
ASK_DIGIT = 'Which digit is it?'


def digits(folder: Path, name: str, count: int, start: int = 0) -> list[Question]:
    """Which digit an image of eight by eight pixels shows (Alpaydin and Kaynak, 1998)."""
    known, asked = load_digits(), []
    for number in range(start, start + count):
        path = folder / f'{name}-digit-{number}.png'
        pixels = (known.images[number] * (255 / 16)).astype('uint8')
        Image.fromarray(pixels).convert('RGB').resize((SIDE, SIDE)).save(path)
        medium = ('image', path)
        asked.append(Question([turn('user', ASK_DIGIT, [medium])], NUMBERS[known.target[number]], (medium,)))
    return asked


def learned(folder: Path, rows: Path, steps: int, **parts: Any) -> tuple[Any, Any]:
    """A model composed of untrained `parts` and a language model, taught by rows, with its processor."""
    corpus = [*tasks.CORPUS, *lessons.CORPUS, ASK_DIGIT]
    made_of = {'language_model': build('llama', folder / 'llama', corpus=corpus), **parts}
    argv = sft(
        folder / 'run',
        folder,
        rows,
        template='Messages',
        per_device_train_batch_size=32,
        freeze_vision_tower=False,
        freeze_audio_tower=False,
        learning_rate=3e-3,
        lr_scheduler_type='cosine',
        lr_warmup_ratio=0.1,
        max_steps=steps,
        save_checkpoint=False,
        sample_cache_dir=folder / 'cache',
        **{f'compose.{name}': part for name, part in made_of.items()},
    )
    place = argv.index('--model_name_or_path')
    (ended,) = run(argv[:place] + argv[place + 2 :], pair=PAIR, timeout=480)
    assert ended.code == 0, ended.output
    register()
    return open_media_model(folder / 'run' / 'slice_end')


@pytest.mark.extended
@pytest.mark.parametrize('image', LESSONS)
def test_a_composed_model_learns_to_name_digits_and_tones(tmp_path: Path, image: str) -> None:
    projector, audio, more = LESSONS[image]
    learnt = digits(tmp_path, 'train', 1400) + pitches(tmp_path, 'train', 150)
    random.Random(0).shuffle(learnt)
    rows = tasks.write_rows(tmp_path / 'rows.json', learnt)
    parts = {
        kind: {'encoder': str(build_encoder(name, tmp_path / name)), **more}
        for kind, name in (('image', image), ('audio', audio))
    }
    model = learned(tmp_path, rows, STEPS['composed'][image], projector=projector, **parts)
    for asked in (digits(tmp_path, 'held-out', 60, start=1500), pitches(tmp_path, 'held-out', 24)):
        answers = ask(*model, asked)
        right = accuracy(answers, asked)
        assert right >= 0.8, f'{right:.0%} right: {answers}'
        assert accuracy(answers, rotated(asked)) < 0.6, 'what is seen and heard does not matter'


@pytest.mark.extended
def test_a_composed_model_learns_the_order_of_frames(tmp_path: Path) -> None:
    rows = tasks.write_rows(tmp_path / 'rows.json', directions(tmp_path, 'train', 200))
    video = {'encoder': str(build_encoder('videomae', tmp_path / 'videomae'))}
    model = learned(tmp_path, rows, STEPS['composed']['videomae'], projector='mlp', video=video)
    asked = directions(tmp_path, 'held-out', 24)
    examine(*model, asked, [turned_round(question) for question in asked])
