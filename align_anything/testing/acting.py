"""Tiny models that act, with random weights and a tokenizer of the words of their goals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align_anything.core.actions import ActionSpace

PAD, UNKNOWN = '<pad>', '<unk>'
ROOM = tuple('pick up the a red green blue purple yellow grey ball box key'.split())
"""The words of goals in the rooms of MiniGrid."""


def word_tokenizer(words: Sequence[str]) -> Any:
    """Returns a tokenizer of whole words; those that it does not know are one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([PAD, UNKNOWN, *words]))}
    base = Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
    base.normalizer = normalizers.Lowercase()
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token=PAD, unk_token=UNKNOWN)


def build_acting(
    out: str | Path, space: ActionSpace, *, words: Sequence[str] = ROOM, seed: int = 0, **config: Any
) -> Path:
    """Writes a checkpoint that acts in `space` into `out` and returns that folder; by default one of 170k parameters.

    It has convolutions and FiLM for pictures of 56 pixels a side, which learns the rooms of MiniGrid in minutes on a
    CPU. `config` are further attributes of `SpocConfig`: `head`, `fusion`, `hidden_size` and the like. `vision` or
    `text` by name (`dinov2`, `siglip`; `t5`, `siglip`) give it a tiny encoder of that kind.
    """
    from align_anything.models.acting.checkpoint import make_checkpoint
    from align_anything.models.acting.configuration import SpocConfig
    from align_anything.models.acting.spoc import SpocModel

    tokenizer = word_tokenizer(words)
    text = config.pop('text', None)
    settings: dict[str, Any] = {
        'vision': 'patches',
        'fusion': 'film',
        'image_size': (56, 56),
        'channels': 32,
        'cameras': len(space.cameras),
        'vocab_size': len(tokenizer),
        'goal_length': 8,
        'hidden_size': 64,
        'fusion_layers': 1,
        'fusion_heads': 4,
        'fusion_size': 128,
        'decoder_layers': 1,
        'decoder_heads': 4,
        'decoder_size': 128,
        'actions': len(space.names),
        'dimensions': len(space.dimensions),
        'chunk': space.chunk,
        'max_steps': 256,
        'dropout': 0.0,
        'image_mean': (0.5, 0.5, 0.5),
        'image_std': (0.5, 0.5, 0.5),
        **config,
    }
    if settings['vision'] != 'patches':
        settings = {'vision_config': _vision(settings['vision']), 'grid': (2, 2), **settings}
    if text is not None:
        settings['text_config'] = _text(text, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpocModel(SpocConfig(**settings))
    return make_checkpoint(out, model, tokenizer, space)


def _vision(name: str) -> dict[str, Any]:
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'image_size': 56, 'patch_size': 14}
    if name == 'dinov2':
        return {'model_type': 'dinov2', 'mlp_ratio': 2, **sizes}
    return {'model_type': 'siglip_vision_model', 'intermediate_size': 64, **sizes}


def _text(name: str, vocabulary: int) -> dict[str, Any]:
    if name == 't5':
        sizes = {'d_model': 32, 'd_kv': 16, 'd_ff': 64, 'num_layers': 2, 'num_heads': 2}
        return {'model_type': 't5', 'vocab_size': vocabulary, 'pad_token_id': 0, **sizes}
    sizes = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    tokens = {'pad_token_id': 0, 'bos_token_id': None, 'eos_token_id': None}
    return {'model_type': 'siglip_text_model', 'vocab_size': vocabulary, **tokens, **sizes}
