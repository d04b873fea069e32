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
    """What `build` is asked for.

    Attributes:
        family: one of `KINDS`.
        hidden: width of the language model, a multiple of 32 (heads are 32 wide unless `heads` says otherwise).
        layers: layers of the language model.
        vocab: pieces of the byte-level BPE, special tokens excepted.
        seed: of the weights.
        image_size: side of a picture in pixels, a multiple of 28.
        vision_hidden, vision_layers: size of the vision tower.
        corpus: texts to train the tokenizer on; empty for a small built-in one.
        sound_seconds: longest sound, to which the processors of some families fill all others up.
        template: of a text family, the published checkpoint whose tokenizer and chat template it has, one of
            `text.MANNERS`; by default the family's own.
    """

    family: str
    hidden: int = 64
    layers: int = 2
    vocab: int = 384
    heads: int | None = None
    seed: int = 0
    image_size: int = 56
    vision_hidden: int = 32
    vision_layers: int = 2
    corpus: tuple[str, ...] = ()
    sound_seconds: int = 2
    template: str | None = None

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

    @property
    def head_width(self) -> int:
        return self.hidden // self.num_heads

    @property
    def patches(self) -> int:
        """Patches of a picture, of which towers of the CLIP shape make a token each."""
        return (self.image_size // PATCH) ** 2

    @property
    def square(self) -> dict[str, int]:
        """The size of a picture as image processors take it."""
        return {'height': self.image_size, 'width': self.image_size}

    @property
    def pinpoints(self) -> list[list[int]]:
        """The sizes that LLaVA-NeXT cuts a larger picture into pieces for."""
        side = self.image_size
        return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]

    def tower(self, **more: Any) -> dict[str, Any]:
        """Returns the configuration that towers of the CLIP shape have in common."""
        return {
            'hidden_size': self.vision_hidden,
            'intermediate_size': 2 * self.vision_hidden,
            'num_hidden_layers': self.vision_layers,
            'num_attention_heads': self.vision_heads,
            'image_size': self.image_size,
            'patch_size': PATCH,
            **more,
        }

    def whisper(self) -> dict[str, Any]:
        """Returns the configuration that encoders of sounds of the Whisper shape have in common."""
        return {
            'd_model': self.vision_hidden,
            'encoder_layers': self.vision_layers,
            'encoder_attention_heads': self.vision_heads,
            'encoder_ffn_dim': 2 * self.vision_hidden,
            'num_mel_bins': MELS,
            # A hundred mel frames a second, halved by the first convolution.
            'max_source_positions': 50 * self.sound_seconds,
        }

    def sounds(self) -> dict[str, Any]:
        """Returns the arguments of the feature extractor before such an encoder."""
        return {'feature_size': MELS, 'chunk_length': self.sound_seconds, 'return_attention_mask': True}

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


def save(
    options: TinyOptions,
    out: Path,
    kind: Callable[[Any], Any],
    config: Any,
    source: Any,
    stops: list[str],
    prepare: Callable[[Any], None] = lambda model: None,
) -> None:
    """Writes the model `kind(config)`, with its tokenizer or processor and the stop tokens of its template.

    `prepare` changes the model before it is written.
    """
    # The caller's random state is not ours to move.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = kind(config)
        prepare(model)
    tokenizer = source.tokenizer if 'tokenizer' in vars(source) else source
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in stops]
    model.save_pretrained(out)
    source.save_pretrained(out)
