"""What the kernel of variable lengths computes, written out for the CPU: forward and backward, in any precision.

Registered for the CPU under the operators of torch, so that the public function and its own autograd are what runs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import varlen


def _visible(queries: int, keys: int, is_causal: bool, window: list[int] | None) -> Tensor:
    """What may be seen: sequences are aligned at their ends, as in flash-attention."""
    left, right = window or [-1, -1]
    if is_causal:
        right = 0
    query = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)[None, :]
    seen = torch.ones((queries, keys), dtype=torch.bool)
    if left >= 0:
        seen &= key >= query - left
    if right >= 0:
        seen &= key <= query + right
    return seen


def _pairs(cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int) -> list[tuple[slice, slice]]:
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    asked, held = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert len(asked) == len(held)
    return [
        (slice(*one), slice(*other))
        for one, other in zip(zip(asked, asked[1:], strict=False), zip(held, held[1:], strict=False), strict=True)
    ]


def _scores(query: Tensor, key: Tensor, seen: Tensor, scale: float) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return torch.einsum('qhd,khd->hqk', query, key).mul(scale).masked_fill(~seen, -torch.inf)


def _forward(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    is_causal=False,
    scale=None,
    window_size=None,
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    out = torch.empty_like(query)
    total = query.new_empty((query.shape[1], query.shape[0]))
    groups = query.shape[1] // key.shape[1]
    for asks, held in _pairs(cu_seq_q, cu_seq_k, max_q, max_k):
        seen = _visible(asks.stop - asks.start, held.stop - held.start, is_causal, window_size)
        scores = _scores(query[asks], key[held], seen, scale)
        total[:, asks] = scores.logsumexp(-1)
        shares = scores.softmax(-1)
        out[asks] = torch.einsum('hqk,khd->qhd', shares, value[held].repeat_interleave(groups, dim=1))
    return out, total, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out,
    query,
    key,
    value,
    out,
    lse,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    is_causal,
    rng_state,
    scale=None,
    window_size=None,
):
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    for asks, held in _pairs(cu_seq_q, cu_seq_k, max_q, max_k):
        seen = _visible(asks.stop - asks.start, held.stop - held.start, is_causal, window_size)
        shares = (_scores(query[asks], key[held], seen, scale) - lse[:, asks, None]).exp()
        wide_key, wide_value = (tensor[held].repeat_interleave(groups, dim=1) for tensor in (key, value))
        of_values = torch.einsum('hqk,qhd->khd', shares, grad_out[asks])
        of_shares = torch.einsum('qhd,khd->hqk', grad_out[asks], wide_value)
        inner = (grad_out[asks] * out[asks]).sum(-1).t()[..., None]
        of_scores = shares * (of_shares - inner) * scale
        dq[asks] += torch.einsum('hqk,khd->qhd', of_scores, wide_key)
        of_keys = torch.einsum('hqk,qhd->khd', of_scores, query[asks])
        dk[held] += of_keys.view(-1, heads, groups, key.shape[2]).sum(2)
        dv[held] += of_values.view(-1, heads, groups, value.shape[2]).sum(2)
    return dq, dk, dv


def emulate() -> None:
    """Makes the operators of the kernel work on the CPU; calling it again changes nothing."""
    varlen._varlen_attn.register_kernel('cpu')(_forward)
    varlen._varlen_attn_backward.register_kernel('cpu')(_backward)
