"""Episodes of chunks of numbers, random, for tests of policies that denoise them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.types import Conversation, Message
from align_anything.models.acting.pi0 import Pi0Spec, load_pi0_spec


def seen(random: np.random.Generator, text: str = '', side: int = 56) -> Message:
    """A step of one camera and a state of two numbers."""
    picture = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
    words = [{'type': 'text', 'text': text}] if text else []
    return {
        'role': 'user',
        'content': [*words, {'type': 'image', 'image': picture}],
        'state': {'position': random.uniform(size=2).tolist()},
    }


def acted(random: np.random.Generator, steps: int) -> Message:
    """A chunk of so many steps."""
    actions = Actions(torch.tensor(random.normal(0, 0.06, (steps, 2))))
    return {'role': 'assistant', 'content': [{'type': 'action', 'action': actions}]}


def episode(*steps: int, seed: int = 0, text: str = 'go to the red square') -> Conversation:
    """An episode with a turn for each chunk of so many steps."""
    random = np.random.default_rng(seed)
    turns: Conversation = []
    for number, chunk in enumerate(steps):
        turns += [seen(random, '' if number else text), acted(random, chunk)]
    return turns


def spec_and_model(checkpoint: Path, dtype: torch.dtype = torch.float64) -> tuple[Pi0Spec, Any]:
    """The rules of a tiny pi0 and its weights."""
    from transformers import PI0ForConditionalGeneration

    return load_pi0_spec(checkpoint), PI0ForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
