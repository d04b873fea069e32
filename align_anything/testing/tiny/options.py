"""What a tiny model can be asked to be, and what all builders share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align_anything.core.errors import ModelError

HEAD_WIDTH = 32
PATCH = 14
POSITIONS = 4096
MELS = 32
"""Frequencies that an audio clip is cut into."""


@dataclass(frozen=True)
class TinyOptions:
    """The arguments of `build`."""

    family: str
    hidden: int
    layers: int
    vocab: int
    heads: int | None
    seed: int
    image_size: int
    vision_hidden: int
    vision_layers: int
    corpus: tuple[str, ...]
    sound_seconds: int

    def check(self) -> None:
        """Raises ModelError when the sizes do not fit each other."""
        unit = self.heads or HEAD_WIDTH
        if self.hidden % unit:
            raise ModelError(f'hidden {self.hidden} is no multiple of {unit} (the heads, or the width of one).')
        if self.image_size % (2 * PATCH):
            raise ModelError(f'image_size {self.image_size} is no multiple of {2 * PATCH}, two patches.')
        if self.vision_hidden % 32 or self.vision_layers < 2 or self.layers < 1:
            raise ModelError('vision_hidden must be a multiple of 32, vision_layers at least 2, layers at least 1.')

    @property
    def num_heads(self) -> int:
        return self.heads or self.hidden // HEAD_WIDTH

    @property
    def vision_heads(self) -> int:
        return self.vision_hidden // 16

    def decoder(self, tokenizer: Any, **more: Any) -> dict[str, Any]:
        """Returns the configuration that decoders of the Llama shape have in common."""
        return {
            'vocab_size': len(tokenizer),
            'hidden_size': self.hidden,
            'intermediate_size': 2 * self.hidden,
            'num_hidden_layers': self.layers,
            'num_attention_heads': self.num_heads,
            'num_key_value_heads': max(1, self.num_heads // 2),
            'max_position_embeddings': POSITIONS,
            'pad_token_id': tokenizer.pad_token_id,
            'bos_token_id': tokenizer.bos_token_id,
            'eos_token_id': tokenizer.eos_token_id,
            **more,
        }


def save(options: TinyOptions, out: Path, make: Callable[[], Any], source: Any, stops: list[str]) -> None:
    """Writes the model that `make` returns, with its tokenizer or processor and the stop tokens of its template."""
    # The caller's random state is not ours to move.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = make()
    tokenizer = source.tokenizer if 'tokenizer' in vars(source) else source
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in stops]
    model.save_pretrained(out)
    source.save_pretrained(out)
