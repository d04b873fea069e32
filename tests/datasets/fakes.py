"""A stand-in for a model family and a collator: an Example carries its text as character codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from align_anything.core.errors import SampleError
from align_anything.core.types import Batch, Conversation, Example, Piece, Skipped
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.source_loading import load_sources


def text_of(conversation: Conversation) -> str:
    """Returns the conversation on one line, an image as its size."""
    words = []
    for message in conversation:
        for part in message['content']:
            words.append(part['text'] if part['type'] == 'text' else f'{part["type"]}{part[part["type"]].size}')
    return '|'.join(words)


def encode(conversation: Conversation, train_on: str = 'all_assistant') -> Example:
    """Encodes character by character; a text with 'too long' in it is refused, one with 'bug' fails."""
    text = text_of(conversation)
    if 'too long' in text:
        raise SampleError('prompt alone has 9 tokens, limit 8')
    if 'bug' in text:
        raise ZeroDivisionError('a fault of the encoder')
    ids = torch.tensor([ord(letter) for letter in text], dtype=torch.int64)
    empty = Piece(torch.empty(0, dtype=torch.int64), torch.empty(0))
    return Example(empty, [Piece(ids, torch.ones(len(ids)))], meta={'train_on': train_on})


def encode_group(conversations: list[Conversation], *_: Any, **__: Any) -> Example:
    """Encodes each conversation as the response of one Example."""
    examples = [encode(conversation) for conversation in conversations]
    return Example(examples[0].prompt, [example.responses[0] for example in examples])


def collate(examples: list[Example], skipped: list[Skipped]) -> Batch:
    """Joins the ids of all examples."""
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(example.responses[0].ids for example in examples)])
    return Batch(
        inputs={'ids': ids},
        segments=ids,
        weights=torch.ones(len(ids)),
        num_responses=len(examples),
        examples_of_responses=torch.arange(len(examples)),
        sources=[example.source for example in examples],
        metas=[example.meta for example in examples],
        skipped=skipped,
    )


def write_rows(path: Path, rows: list[Any]) -> str:
    """Writes rows as JSON lines and returns the path."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def make_dataset(
    source: Any,
    template: Any = 'Alpaca',
    *,
    allowed: frozenset[str] = frozenset({'image'}),
    train_on: str = 'all_assistant',
    answers: frozenset[str] = frozenset(),
    **options: Any,
) -> ExampleDataset:
    """Opens sources with the fake encoder."""
    sources, task = load_sources(source, template, **options), SupervisedTask(encode, train_on)
    return ExampleDataset(sources, task, 'some_pair', frozenset(allowed), answers=answers)
