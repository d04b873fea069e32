"""A model composed of parts that were never trained learns to name digits and tones, by the trainer that users call."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from align_anything.models.composed.register import register
from align_anything.testing.tiny import build
from align_anything.testing.tiny.encoders import build_encoder
from align_anything.trainers.pairs import PAIRS
from tests.learning import lessons, tasks
from tests.learning.lessons import pitches, rotated
from tests.learning.school import accuracy, ask, open_media_model
from tests.learning.tasks import NUMBERS, SIDE, Question, turn
from tests.trainers.runs import run, sft

PAIR = PAIRS['any_to_text']
# Each encoder and each projector once; what makes few tokens of a medium learns more slowly.
LESSONS = {
    'mlp': ('vit', 'wav2vec2', {}),
    'linear': ('clip', 'whisper', {}),
    'transformer': ('dinov2', 'wavlm', {'num_tokens': 8, 'num_heads': 2}),
    'expand': ('siglip', 'hubert', {'num_tokens': 16}),
}
STEPS = {'composed': {'mlp': 400, 'linear': 400, 'transformer': 600, 'expand': 1000}}
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


@pytest.mark.extended
@pytest.mark.parametrize('projector', LESSONS)
def test_a_composed_model_learns_to_name_digits_and_tones(tmp_path: Path, projector: str) -> None:
    image, audio, more = LESSONS[projector]
    learnt = digits(tmp_path, 'train', 1400) + pitches(tmp_path, 'train', 150)
    random.Random(0).shuffle(learnt)
    rows = tasks.write_rows(tmp_path / 'rows.json', learnt)
    corpus = [*tasks.CORPUS, *lessons.CORPUS, ASK_DIGIT]
    made_of = {
        'compose.language_model': build('llama', tmp_path / 'llama', corpus=corpus),
        'compose.image': {'encoder': str(build_encoder(image, tmp_path / image)), **more},
        'compose.audio': {'encoder': str(build_encoder(audio, tmp_path / audio)), **more},
        'compose.projector': projector,
    }
    argv = sft(
        tmp_path / 'run',
        tmp_path,
        rows,
        template='Messages',
        per_device_train_batch_size=32,
        freeze_vision_tower=False,
        freeze_audio_tower=False,
        learning_rate=3e-3,
        lr_scheduler_type='cosine',
        lr_warmup_ratio=0.1,
        max_steps=STEPS['composed'][projector],
        save_checkpoint=False,
        sample_cache_dir=tmp_path / 'cache',
        **made_of,
    )
    place = argv.index('--model_name_or_path')
    (ended,) = run(argv[:place] + argv[place + 2 :], pair=PAIR, timeout=480)
    assert ended.code == 0, ended.output
    register()
    learned = open_media_model(tmp_path / 'run' / 'slice_end')
    for asked in (digits(tmp_path, 'held-out', 60, start=1500), pitches(tmp_path, 'held-out', 24)):
        answers = ask(*learned, asked)
        right = accuracy(answers, asked)
        assert right >= 0.8, f'{right:.0%} right: {answers}'
        assert accuracy(answers, rotated(asked)) < 0.6, 'what is seen and heard does not matter'
