"""Training by the command line of a user, and asking the result by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from tests.learning.tasks import Question
from tests.trainers.runs import IMAGE, TEXT, run, sft

LONGEST_ANSWER = 8


def train(output: Path, model: Path, rows: Path, *, pictures: bool = False, ranks: int = 1, **settings: Any) -> Path:
    """Runs supervised training and returns the folder of the trained model."""
    argv = sft(
        output,
        model,
        rows,
        template='Messages',
        **{
            'per_device_train_batch_size': 16 // ranks,
            'freeze_vision_tower': False,
            'lr_scheduler_type': 'cosine',
            'lr_warmup_ratio': 0.1,
            **settings,
        },
    )
    ended = run(argv, ranks, IMAGE if pictures else TEXT, timeout=240)
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    return output / 'slice_end'


def open_text_model(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a checkpoint, as transformers finds them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return _plain(model), transformers.AutoTokenizer.from_pretrained(folder)


def open_picture_model(folder: Path) -> tuple[Any, Any]:
    """The model and the processor of a checkpoint, as transformers finds them."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return _plain(model), transformers.AutoProcessor.from_pretrained(folder)


def ask(model: Any, reader: Any, questions: Sequence[Question]) -> list[str]:
    """Greedy answers to questions with equally many pictures each, in one batch, as a user of the checkpoint asks.

    An answer that the model does not end within `LONGEST_ANSWER` tokens comes back as ''.
    """
    tokenizer = getattr(reader, 'tokenizer', reader)
    tokenizer.padding_side = 'left'
    inputs = reader.apply_chat_template(
        [_filled(question, reader is not tokenizer) for question in questions],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors='pt',
        **({'padding': True} if reader is tokenizer else {'processor_kwargs': {'padding': True}}),
    )
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
    stops = model.generation_config.eos_token_id
    answers = []
    for answer in tokens[:, inputs['input_ids'].shape[1] :].tolist():
        end = next((place for place, token in enumerate(answer) if token in stops), None)
        answers.append('' if end is None else tokenizer.decode(answer[:end]).strip())
    return answers


def accuracy(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """The share of answers that are the right word and nothing else."""
    assert len(answers) == len(questions)
    return sum(answer == question.answer for answer, question in zip(answers, questions, strict=True)) / len(questions)


def _plain(model: Any) -> Any:
    assert type(model).__module__.startswith('transformers.models.')
    return model.eval()


def _filled(question: Question, parts: bool) -> list[dict[str, Any]]:
    if not parts:
        return [{**turn, 'content': turn['content'][0]['text']} for turn in question.turns]
    pictures = iter(question.pictures)
    return [
        {
            **turn,
            'content': [
                {'type': 'image', 'image': Image.open(next(pictures))} if part['type'] == 'image' else part
                for part in turn['content']
            ],
        }
        for turn in question.turns
    ]
