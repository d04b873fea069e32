"""Attention of packed rows by the variable-length kernel of torch: no mask, no loop over segments, on CUDA.

Own tokens are one causal call over all spans. Branches see their prefix in a second call, where all branches of one
prefix are one sequence of queries; both are merged by their log-sum-exp. The backward pass calls the kernel's own for
each part with the merged output and log-sum-exp, by which each part gets its gradients of the whole softmax. With a
window that cuts something off, branches hold what they see of their prefix themselves, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align_anything.policies.token.spans import Span

WIDEST_HEAD = 256
HALF = (torch.float16, torch.bfloat16)
CAUSAL = [-1, 0]


@dataclass(frozen=True)
class Sequences:
    """Sequences that a call attends within.

    Attributes:
        bounds: where they begin, and the end of the last one, `(sequences + 1,)` int32.
        longest: length of the longest.
    """

    bounds: Tensor
    longest: int

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Sequences:
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return Sequences(bounds.to(device, non_blocking=True), max(lengths))


@dataclass(frozen=True)
class Calls:
    """The calls that a plan is.

    Attributes:
        window: what each query sees to its left, of all but causal attention; None for everything.
        own: the spans themselves.
        queries, query_index: the branches, those of one prefix one after the other, and which tokens they are
            `(queries,)`; None where nothing branches, or each branch holds its prefix.
        keys, key_index: the same of the keys: of the prefixes, or where there is a window of each span with what it
            sees of its prefix.
    """

    window: int | None
    own: Sequences
    queries: Sequences | None = None
    query_index: Tensor | None = None
    keys: Sequences | None = None
    key_index: Tensor | None = None


def fits(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Tells whether the kernel computes causal attention of these queries and values `(1, heads, length, size)`."""
    return (
        query.is_cuda
        and query.dtype in HALF
        and query.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and query.shape[-1] % 8 == 0
        and not dropout
    )


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, calls: Calls, scaling: float) -> Tensor:
    """Returns `(1, length, heads, size)` of the packed row, from `(1, heads, length, size)` and fewer heads of keys."""
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if calls.query_index is not None:
        return _Branching.apply(queries, keys, values, calls, scaling)[None]
    held = calls.own
    if calls.keys is not None and calls.key_index is not None:
        held, keys, values = calls.keys, keys[calls.key_index], values[calls.key_index]
    return _attend(queries, keys, values, calls.own, held, calls.window, scaling)[None]


def calls_of(spans: Sequence[Span], window: int | None, device: torch.device) -> Calls:
    """Returns the calls for a row of spans, of which each token sees the last `window` ones, itself among them."""
    own = Sequences.of([span.stop - span.start for span in spans], device)
    longest = max(span.prefix_length + span.stop - span.start for span in spans)
    if window is not None and window >= longest:
        window = None
    branches = [span for span in spans if span.prefix_length]
    if not branches:
        return Calls(window, own)
    if window is not None:
        # The first token of a branch sees the last `window - 1` ones of its prefix, the others fewer.
        seen = [(max(span.prefix_start, span.prefix_stop - window + 1), span.prefix_stop) for span in spans]
        held = [_range(*before) + _range(span.start, span.stop) for before, span in zip(seen, spans, strict=True)]
        index = _index([token for tokens in held for token in tokens], device)
        return Calls(window, own, keys=Sequences.of([len(tokens) for tokens in held], device), key_index=index)
    of_prefix: dict[tuple[int, int], list[Span]] = {}
    for span in branches:
        of_prefix.setdefault((span.prefix_start, span.prefix_stop), []).append(span)
    asking = [[token for span in group for token in _range(span.start, span.stop)] for group in of_prefix.values()]
    prefixes = [_range(*prefix) for prefix in of_prefix]
    return Calls(
        None,
        own,
        Sequences.of([len(tokens) for tokens in asking], device),
        _index([token for tokens in asking for token in tokens], device),
        Sequences.of([len(tokens) for tokens in prefixes], device),
        _index([token for tokens in prefixes for token in tokens], device),
    )


def _range(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


def _index(tokens: list[int], device: torch.device) -> Tensor:
    return torch.tensor(tokens).to(device, non_blocking=True)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, asking: Sequences, held: Sequences, window: int | None, scaling: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        query,
        key,
        value,
        asking.bounds,
        held.bounds,
        asking.longest,
        held.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


class _Branching(torch.autograd.Function):
    """Attention to own tokens and to a prefix, as one softmax; `(tokens, heads, size)` each."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Calls, scaling: float) -> Tensor:
        out, total, state = _forward(query, key, value, calls.own, calls.own, True, scaling)
        asks, held = calls.query_index, calls.key_index
        assert calls.queries is not None and calls.keys is not None
        ahead, sums, ahead_state = _forward(
            query[asks], key[held], value[held], calls.queries, calls.keys, False, scaling
        )
        own = total[:, asks]
        merged = torch.logaddexp(own, sums)
        share = torch.stack([own - merged, sums - merged]).exp().transpose(1, 2)[..., None].to(out.dtype)
        out[asks] = share[0] * out[asks] + share[1] * ahead
        total[:, asks] = merged
        ctx.save_for_backward(query, key, value, out, total, state, ahead_state)
        ctx.calls, ctx.scaling = calls, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total, state, ahead_state = ctx.saved_tensors
        calls, asks, held = ctx.calls, ctx.calls.query_index, ctx.calls.key_index
        own = _backward(gradient, query, key, value, out, total, calls.own, calls.own, True, state, ctx.scaling)
        ahead = _backward(
            gradient[asks],
            query[asks],
            key[held],
            value[held],
            out[asks],
            total[:, asks],
            calls.queries,
            calls.keys,
            False,
            ahead_state,
            ctx.scaling,
        )
        for whole, part, index in zip(own, ahead, (asks, held, held), strict=True):
            whole.index_add_(0, index, part)
        return *own, None, None


def _forward(
    query: Tensor, key: Tensor, value: Tensor, asking: Sequences, held: Sequences, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, its log-sum-exp `(heads, tokens)`, and what the backward pass gets of the kernel's state."""
    from torch.nn.attention.varlen import _varlen_attn

    return _varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        asking.bounds,
        held.bounds,
        asking.longest,
        held.longest,
        causal,
        scaling,
        CAUSAL if causal else None,
        query.shape[1] != key.shape[1],
    )


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    asking: Sequences,
    held: Sequences,
    causal: bool,
    state: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from torch.nn.attention.varlen import _varlen_attn_backward

    return _varlen_attn_backward(
        gradient.contiguous(),
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        out.contiguous(),
        total.contiguous(),
        asking.bounds,
        held.bounds,
        asking.longest,
        held.longest,
        causal,
        state,
        scaling,
        CAUSAL if causal else None,
    )
