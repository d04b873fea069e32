"""A family without a checkpoint: what collation needs, and a tiny model to score with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from align_anything.core.types import Example, Piece
from align_anything.models.output_heads import OutputHead, output_heads
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy


@dataclass(frozen=True)
class TextFamily:
    pad_token_id: int = 0
    media_token_ids: frozenset[int] = frozenset()
    token_tensor_names: tuple[str, ...] = ()
    bidirectional_media: bool = False
    softcap: float | None = None
    logit_scale: float = 1.0
    codes: None = None
    components: ClassVar[dict[str, list[str]]] = {}

    def heads(self, model: torch.nn.Module) -> list[OutputHead]:
        return output_heads(model)

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        return torch.arange(len(ids))[None]

    def merge_media(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def component_of(self, name: str) -> str:
        return 'language_model'

    def dummy(self, kind: str) -> Piece:
        return Piece(torch.tensor([7, 7]), torch.zeros(2), media={'pixels': torch.ones(1, 3)}, media_counts={kind: 1})


def plain_policy(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> TokenPolicy:
    """A policy of this family with the padded layout."""
    return TokenPolicy(model, TokenCollator(TextFamily(), 'padded'), dtype=dtype)


def piece(*tokens: int, weight: float = 0.0) -> Piece:
    return Piece(torch.tensor(tokens), torch.full((len(tokens),), weight))


def example(prompt: Piece, *responses: Piece, source: str = 'row') -> Example:
    return Example(prompt, list(responses), source)


def tiny_llama(**changes: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = dict(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
