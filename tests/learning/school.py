"""Training by the command line of a user, and asking the result by transformers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.testing.tiny import build
from align_anything.trainers.pairs import Pair
from tests.learning import lessons, tasks
from tests.learning.tasks import Medium, Question
from tests.trainers.runs import TEXT, run, sft

REQUIRED = 0.9
LONGEST_ANSWER = 40
# What the templates of models that think begin answers with.
EMPTY_THOUGHT = re.compile(r'^\s*<think>\s*</think>')
FRAMES_PER_SECOND = 2.0
"""What frames without a clock count as."""


def train(output: Path, model: Path, rows: Path, *, pair: Pair = TEXT, ranks: int = 1, **settings: Any) -> Path:
    """Runs supervised training and returns the folder of the trained model."""
    argv = sft(
        output,
        model,
        rows,
        template='Messages',
        **{
            'per_device_train_batch_size': 16 // ranks,
            **dict.fromkeys(('freeze_vision_tower', 'freeze_audio_tower', 'freeze_mm_proj'), False),
            'lr_scheduler_type': 'cosine',
            'lr_warmup_ratio': 0.1,
            **settings,
        },
    )
    ended = run(argv, ranks, pair, timeout=240)
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    return output / 'slice_end'


def train_by(pair: str, name: str, output: Path, model: Path, rows: Path, **settings: Any) -> Path:
    """Trains a model by the algorithm `name` on the data of `pair`; returns the folder of what came of it."""
    its_pair, algorithm = find_run(pair, name)
    (done,) = run(sft(output, model, rows, **settings), 1, its_pair, algorithm=algorithm, timeout=1500)
    assert done.code == 0, done.output
    return output / 'slice_end'


def teach(folder: Path, family: str, asked: Sequence[Question], pair: Pair, **settings: Any) -> tuple[Any, Any]:
    """Trains a tiny model of a family on questions whose media lie in `folder`; returns it with its processor."""
    rows = tasks.write_rows(folder / 'rows.json', asked)
    start = build(family, folder / 'model', corpus=[*tasks.CORPUS, *lessons.CORPUS])
    settings = {'learning_rate': 6e-3, 'model_max_length': 1024, 'save_checkpoint': False, **settings}
    return open_media_model(train(folder / 'run', start, rows, pair=pair, **settings))


def examine(model: Any, processor: Any, asked: Sequence[Question], *exchanges: Sequence[Question]) -> None:
    """Asserts right answers to questions, and that exchanged media bring the answers that belong to them."""
    for others in (asked, *exchanges):
        answers = ask(model, processor, others)
        right = accuracy(answers, others)
        assert right >= REQUIRED, f'{right:.0%} right: {answers}'
        luck = accuracy([other.answer for other in others], asked)
        # What is right by luck stays right with exchanged media, and nothing else does.
        assert others is asked or (luck < 0.6 and accuracy(answers, asked) <= luck + (1 - REQUIRED))


def open_text_model(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a checkpoint, as transformers finds them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return _plain(model), transformers.AutoTokenizer.from_pretrained(folder)


def open_media_model(folder: Path) -> tuple[Any, Any]:
    """The model and the processor of a checkpoint, as transformers finds them."""
    model = transformers.AutoModelForMultimodalLM.from_pretrained(folder)
    return _plain(model), transformers.AutoProcessor.from_pretrained(folder)


def ask(model: Any, reader: Any, questions: Sequence[Question]) -> list[str]:
    """Greedy answers to questions with equally many media of each kind, in one batch, as a user of the checkpoint asks.

    An answer that the model does not end within `LONGEST_ANSWER` tokens comes back as ''.
    """
    tokenizer = getattr(reader, 'tokenizer', reader)
    tokenizer.padding_side = 'left'
    inputs = _read(reader, questions) if reader.chat_template else _read_bare(reader, questions)
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
    stops = model.generation_config.eos_token_id
    answers = []
    for answer in tokens[:, inputs['input_ids'].shape[1] :].tolist():
        end = next((place for place, token in enumerate(answer) if token in stops), None)
        text = '' if end is None else tokenizer.decode(answer[:end])
        answers.append(EMPTY_THOUGHT.sub('', text).strip())
    return answers


def accuracy(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """The share of answers that are the right word and nothing else."""
    assert len(answers) == len(questions)
    return sum(answer == question.answer for answer, question in zip(answers, questions, strict=True)) / len(questions)


def _plain(model: Any) -> Any:
    assert type(model).__module__.startswith(('transformers.models.', 'align_anything.models.composed.modeling'))
    return model.eval()


def _read(reader: Any, questions: Sequence[Question]) -> Any:
    """The inputs of questions for a reader with a chat template."""
    bare = not isinstance(reader, transformers.ProcessorMixin)
    how: dict[str, Any] = {'padding': True}
    clips = [medium for question in questions for medium in question.media if medium[0] == 'video']
    if clips:
        metadata = [_metadata(opened(clip)) for clip in clips]
        how |= {'do_sample_frames': False, 'video_metadata': metadata}
        if 'Omni' in type(reader).__name__:
            # Its processor has a default of its own.
            how['videos_kwargs'] = {'fps': FRAMES_PER_SECOND, 'size': reader.video_processor.to_dict()['size']}
    return reader.apply_chat_template(
        [_filled(question, bare) for question in questions],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors='pt',
        **(how if bare else {'processor_kwargs': how}),
    )


def _read_bare(reader: Any, questions: Sequence[Question]) -> Any:
    """The inputs of questions with one image in one turn, for a processor that has no chat template."""
    texts = [f'<image>{question.turns[0]["content"][-1]["text"]}' for question in questions]
    pictures = [[opened(medium) for medium in question.media] for question in questions]
    return reader(text=texts, images=pictures, padding=True, return_tensors='pt')


def opened(medium: Medium) -> Any:
    """An image, the frames of a video or the samples of an audio clip, without the package."""
    kind, path = medium
    if kind == 'video':
        return np.stack([np.asarray(Image.open(frame)) for frame in sorted(path.iterdir())])
    return Image.open(path) if kind == 'image' else soundfile.read(path, dtype='float32')[0]


def _metadata(frames: np.ndarray) -> Any:
    number, height, width = frames.shape[:3]
    return transformers.video_utils.VideoMetadata(
        total_num_frames=number,
        fps=FRAMES_PER_SECOND,
        width=width,
        height=height,
        duration=number / FRAMES_PER_SECOND,
        frames_indices=list(range(number)),
    )


def _filled(question: Question, bare: bool) -> list[dict[str, Any]]:
    if bare:
        return [{**turn, 'content': turn['content'][0]['text']} for turn in question.turns]
    media = iter(question.media)
    return [
        {
            **turn,
            'content': [
                part if part['type'] == 'text' else {**part, part['type']: opened(next(media))}
                for part in turn['content']
            ],
        }
        for turn in question.turns
    ]
