"""Questions about pictures to a checkpoint that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from align_anything.core.errors import ModelError
from align_anything.core.types import Example
from align_anything.models.pretrained_model import load_model, load_spec
from align_anything.models.rope import fix_rope_tables
from align_anything.rewards.frozen import device_of
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.hf import HFRollouts

TOKENS = 16


def ask(model: str, questions: Sequence[tuple[Any, str]], batch_size: int, device: str | None = None) -> list[str]:
    """Returns the answers of a checkpoint to questions, each about a PIL image, decoded greedily, `batch_size` at once.

    Raises ModelError for a checkpoint that reads no pictures or writes no text.
    """
    rollouts = _opened(model, device_of(device), batch_size)
    said = []
    for start in range(0, len(questions), batch_size):
        asked = [
            [{'role': 'user', 'content': [{'type': 'image', 'image': picture}, {'type': 'text', 'text': words}]}]
            for picture, words in questions[start : start + batch_size]
        ]
        examples = [Example(rollouts.spec.encode_prompt(turns), [], conversation=turns) for turns in asked]
        for (response,) in rollouts.generate(examples, Sampling(max_new_tokens=TOKENS, temperature=0)):
            said.append(''.join(part['text'] for part in response.parts if part['type'] == 'text'))
    return said


@cache
def _opened(source: str, device: str, batch_size: int) -> HFRollouts:
    spec = load_spec(source)
    if 'image' not in spec.reads:
        raise ModelError(
            f"{source} (model_type '{spec.model_type}') reads no pictures, so it cannot be asked about any."
        )
    dtype = torch.bfloat16 if device != 'cpu' else torch.float32
    model = load_model(source, spec.components, dtype=dtype)
    fix_rope_tables(model, spec.max_length)
    model = model.requires_grad_(False).eval().to(device)
    return HFRollouts(model, spec, dtype=dtype, batch_size=batch_size)
