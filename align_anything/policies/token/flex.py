"""Attention of packed rows with soft-capped scores by FlexAttention: one kernel with a mask of blocks, on CUDA.

The kernel of variable lengths caps no scores. This one does, and sees by a function of two positions what a plan says:
own tokens, a prefix, a window, media that see themselves in both directions. It is compiled when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align_anything.policies.token.spans import Span
from align_anything.policies.token.varlen import HALF, WIDEST_HEAD

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NARROWEST_HEAD = 16
Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def caps(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Tells whether the kernel computes soft-capped attention of queries and values `(1, heads, length, size)`."""
    sizes = (query.shape[-1], value.shape[-1])
    fit = all(NARROWEST_HEAD <= size <= WIDEST_HEAD for size in sizes)
    return query.is_cuda and query.dtype in HALF and not dropout and fit


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: BlockMask, scaling: float, softcap: float
) -> Tensor:
    """Returns `(1, length, heads, size)` of the packed row, from `(1, heads, length, size)` and fewer heads of keys."""
    output = _kernel(query.is_cuda)(
        query,
        key,
        value,
        score_mod=_soft_cap(softcap),
        block_mask=visible,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


def block_mask_of(spans: Sequence[Span], window: int | None, blocks: Tensor | None, device: torch.device) -> BlockMask:
    """Returns who sees whom in a row of spans; `window` and `blocks` are those of an `AttentionPlan`."""
    length = spans[-1].stop
    return _maker(device.type == 'cuda')(visible_in(spans, window, blocks, device), None, None, length, length, device)


def visible_in(spans: Sequence[Span], window: int | None, blocks: Tensor | None, device: torch.device) -> Visible:
    """Returns what says of a query and a key of the row, by their positions, whether one sees the other."""
    lengths = torch.tensor([span.stop - span.start for span in spans])
    bounds = torch.tensor([(span.start, span.stop, span.prefix_start, span.prefix_stop) for span in spans])
    starts, stops, prefix_starts, prefix_stops = bounds.repeat_interleave(lengths, dim=0).t().contiguous().to(device)
    numbers = None if blocks is None else blocks.to(device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= starts[query]) & (key <= query)
        ahead = (key >= prefix_starts[query]) & (key < prefix_stops[query])
        seen = own | ahead
        if window is not None:
            # The last token of the prefix stands right before the first own one.
            apart = query - starts[query] + prefix_stops[query] - key
            seen = (own & (query - key < window)) | (ahead & (apart < window))
        if numbers is None:
            return seen
        near = ahead | ((key >= starts[query]) & (key < stops[query]))
        return seen | (near & (numbers[query] == numbers[key]) & (numbers[key] > 0))

    return visible


@cache
def _soft_cap(softcap: float) -> Callable[..., Tensor]:
    # One function for each cap: another one would be compiled again.
    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Rows are of many lengths: after the second one torch compiles for all.
    return torch.compile(flex_attention) if compiled else flex_attention


@cache
def _maker(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    # Not compiled it would hold a number for every pair of positions.
    return torch.compile(create_block_mask) if compiled else create_block_mask
