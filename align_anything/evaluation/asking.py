"""Questions about pictures to a checkpoint that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from align_anything.algorithms.generate import Generating
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import find_pair
from align_anything.trainers.runs.generator import Generator, open_generator

PAIR = 'text_image_to_text'
TOKENS = 16


def ask(model: str, questions: Sequence[tuple[Any, str]], batch_size: int, tokens: int = TOKENS) -> list[str]:
    """Returns the answers of a checkpoint to questions, each about a picture, decoded greedily.

    Raises ModelError for a checkpoint that reads no pictures or writes no text.
    """
    generator = _opened(model, tokens)
    said = []
    for start in range(0, len(questions), batch_size):
        examples = [
            generator.encode([{'role': 'user', 'content': [{'type': 'image', 'image': picture}, _text(words)]}])
            for picture, words in questions[start : start + batch_size]
        ]
        for (response,) in generator.generate(examples):
            said.append(''.join(part['text'] for part in response.parts if part['type'] == 'text'))
    return said


@cache
def _opened(model: str, tokens: int) -> Generator:
    pair = find_pair(PAIR)
    argv = ['--model_name_or_path', model, '--temperature', '0', '--max_new_tokens', str(tokens)]
    return open_generator(settings_of(pair, Generating, argv, {}), pair)


def _text(words: str) -> dict[str, str]:
    return {'type': 'text', 'text': words}
