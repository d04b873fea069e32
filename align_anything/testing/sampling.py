"""Asking a checkpoint for media by transformers alone, without anything that trained it: one more opinion of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.core.types import MediaKind
from align_anything.models.codecs.base import codec_rules
from align_anything.models.declared_codes import DECLARATION


def sample_media(
    checkpoint: str | Path, kind: MediaKind, prompts: Sequence[str], *, longest: int = 64, seed: int = 0
) -> list[Any]:
    """Returns what a language model with tokens for media of one code book answers to each prompt, decoded.

    It samples at temperature 1, the media of all prompts side by side. Where the checkpoint declares no size, the model
    ends a medium by itself; what has not ended after `longest` codes comes back as None.
    """
    checkpoint = Path(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side='left')
    declared = getattr(model.config, DECLARATION)[kind]
    codec = codec_rules(checkpoint / declared['codec']).open()
    (first,), (entries,), size = declared['first_ids'], codec.rules.books, declared.get('size')
    closing = tokenizer.convert_tokens_to_ids(declared['closing'])
    asked = [
        tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}], add_generation_prompt=True, tokenize=False)
        + declared['opening']
        for prompt in prompts
    ]
    inputs = tokenizer(asked, return_tensors='pt', padding=True, add_special_tokens=False)
    begin, codes = inputs['input_ids'].shape[1], list(range(first, first + entries))

    def allowed(_: int, ids: Tensor) -> list[int]:
        return codes if size or len(ids) == begin else [*codes, closing]

    torch.manual_seed(seed)
    with torch.no_grad():
        written = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=math.prod(size) if size else longest,
            prefix_allowed_tokens_fn=allowed,
            eos_token_id=closing,
            pad_token_id=closing,
        )
    return [_decoded(codec, row, first, closing, size) for row in written[:, begin:]]


def _decoded(codec: Any, ids: Tensor, first: int, closing: int, size: Sequence[int] | None) -> Any:
    if size:
        return codec.decode((ids - first).view(1, *size))
    length = int((ids != closing).sum())
    return None if length == len(ids) else codec.decode((ids[:length] - first)[None])
