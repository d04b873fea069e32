"""Layers of models that act; those over time see no later step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Attention of several heads, by four linear layers with these names."""

    def __init__(
        self, size: int, heads: int, names: tuple[str, str, str, str], bias: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.names = heads, names
        for name in names:
            self.add_module(name, nn.Linear(size, size, bias=bias))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`hidden` is `(batch, length, size)`; `mask` `(batch, length)` is true where keys may be seen."""
        query, key, value = (
            self.get_submodule(name)(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in self.names[:3]
        )
        seen = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=causal,
        )
        return self.get_submodule(self.names[3])(seen.transpose(1, 2).flatten(2))


class FusionLayer(nn.Module):
    """A layer of an encoder that normalises behind what it adds, as `nn.TransformerEncoderLayer` does."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        names = ('q_proj', 'k_proj', 'v_proj', 'out_proj')
        self.self_attn = Attention(size, heads, names, bias=True, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout, self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.dropout1(self.self_attn(hidden, mask)))
        inner = self.linear2(self.dropout(functional.relu(self.linear1(hidden))))
        return self.norm2(hidden + self.dropout2(inner))


class FeedForward(nn.Module):
    """Two linear layers, the first of which a third one gates."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.w2 = nn.Linear(inner, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(hidden)) * self.w3(hidden))


class DecoderLayer(nn.Module):
    """A layer of the decoder over time, as in Llama without rotary positions."""

    def __init__(self, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(size, heads, ('wq', 'wk', 'wv', 'wo'), bias=False)
        self.feed_forward = FeedForward(size, inner)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(size, eps=1e-5), nn.RMSNorm(size, eps=1e-5)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), causal=True)
        return hidden + self.feed_forward(self.ffn_norm(hidden))


class Decoder(nn.Module):
    """The decoder over time: `(batch, steps, size)` to the same."""

    def __init__(self, size: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(size, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.output = nn.Linear(size, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return self.output(self.norm(hidden))


def positions(steps: int, like: Tensor, first: Tensor | None = None) -> Tensor:
    """Returns sines and cosines of the number of each step, `(steps, size)`, `size` being the last one of `like`.

    With the number of the `first` step of each episode, `(episodes,)`, it returns `(episodes, steps, size)`.
    """
    size = like.shape[-1]
    rates = torch.exp(torch.arange(0, size, 2, device=like.device) * (-math.log(10000.0) / size))
    numbers = torch.arange(steps, device=like.device)
    angles = (numbers if first is None else first[:, None] + numbers)[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(like.dtype)
