"""Attention by segment on scaled-dot-product kernels: packing and prefix sharing without a dense block mask.

Registered with transformers under the name `segment`. A call that carries an `AttentionPlan` goes to the kernel of
variable lengths where that can compute it (`varlen.py`), with soft-capped scores to FlexAttention (`flex.py`), and runs
piece by piece elsewhere; any other call is plain `sdpa` with plain `sdpa` masks, so the same model pads, packs, shares
and generates. Soft caps that are left, and attention sinks, are computed with the scores written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align_anything.policies.token.flex import block_mask_of, capped_attention, caps
from align_anything.policies.token.sequence_parallel import Share
from align_anything.policies.token.spans import Span
from align_anything.policies.token.varlen import Calls, calls_of, fits, varlen_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SEGMENT_ATTENTION = 'segment'


@dataclass(frozen=True)
class AttentionPlan:
    """Who sees whom in one packed row.

    Attributes:
        spans: consecutive spans that cover the row; a prefix is the beginning of one of them, or all of it.
        blocks: where some tokens see each other in both directions, the number of the media item, or of the codes
            sampled at once, that each belongs to, zero for others, `(length,)`; otherwise None.
        share: of the row that this rank computes.
    """

    spans: tuple[Span, ...]
    blocks: Tensor | None = None
    share: Share = Share()
    _masks: dict[Any, Tensor | None] = field(default_factory=dict, repr=False, compare=False)
    _calls: dict[Any, Calls] = field(default_factory=dict, repr=False, compare=False)
    _block_masks: dict[Any, BlockMask] = field(default_factory=dict, repr=False, compare=False)

    def calls(self, window: int | None, device: torch.device) -> Calls:
        """Returns the calls of the kernel of variable lengths, made once for all layers."""
        key = (window, device)
        if key not in self._calls:
            self._calls[key] = calls_of(self.spans, window, device)
        return self._calls[key]

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Returns what FlexAttention is told of who sees whom, made once for all layers."""
        key = (window, device)
        if key not in self._block_masks:
            self._block_masks[key] = block_mask_of(self.spans, window, self.blocks, device)
        return self._block_masks[key]

    def mask(self, span: Span, window: int | None, device: torch.device) -> Tensor | None:
        """Returns `(queries, keys)` of what may be seen, or None when plain causal attention says the same."""
        key = (span, window, device)
        if key not in self._masks:
            self._masks[key] = self._build_mask(span, window, device)
        return self._masks[key]

    def _build_mask(self, span: Span, window: int | None, device: torch.device) -> Tensor | None:
        queries, prefix = span.stop - span.start, span.prefix_length
        keys = prefix + queries
        blocks = None
        if self.blocks is not None:
            blocks = torch.cat([self.blocks[span.prefix_start : span.prefix_stop], self.blocks[span.start : span.stop]])
            blocks = blocks.to(device) if bool(blocks.any()) else None
        narrow = window is not None and window < keys
        if prefix == 0 and not narrow and blocks is None:
            return None
        query_index = torch.arange(prefix, keys, device=device)[:, None]
        key_index = torch.arange(keys, device=device)[None, :]
        visible = key_index <= query_index
        if narrow:
            visible = visible & (query_index - key_index < window)
        if blocks is not None:
            visible = visible | ((blocks[prefix:, None] == blocks[None, :]) & (blocks[None, :] > 0))
        return visible


def media_blocks(is_media: Tensor, starts: Sequence[int]) -> Tensor:
    """Numbers the runs of media tokens in a packed row: 1, 2, … and 0 for text, `(length,)` int64.

    `starts` are the positions where a new sequence begins, so that two media items meeting there stay apart.
    """
    boundary = is_media.clone()
    boundary[1:] &= ~is_media[:-1]
    for start in starts:
        if start < len(is_media):
            boundary[start] = is_media[start]
    return torch.cumsum(boundary, 0) * is_media


def chunk_blocks(chunk: Tensor, starts: Sequence[int] = (0,)) -> Tensor:
    """Numbers the placeholders of codes that are sampled at once, which `chunk` `(length,)` counts, as `media_blocks`.

    Where the count does not go on by one, other codes begin.
    """
    goes_on = torch.zeros_like(chunk, dtype=torch.bool)
    goes_on[1:] = (chunk[1:] == chunk[:-1] + 1) & (chunk[:-1] > 0)
    goes_on[[start for start in starts if start < len(chunk)]] = False
    return torch.cumsum((chunk > 0) & ~goes_on, 0) * (chunk > 0)


def mask_with_blocks(attention_mask: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what is added to the scores of rows padded on the right, `(rows, 1, queries, keys)` in `dtype`.

    Both are `(rows, length)`: which tokens there are, and which of them see each other in both directions.
    """
    length = blocks.shape[1]
    together = (blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, None, :] > 0)
    visible = (together | _causal(length, length, blocks.device)) & attention_mask[:, None, :].bool()
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=blocks.device).masked_fill(~visible, hidden)[:, None]


def row_mask() -> Tensor:
    """The `attention_mask` of a row with a plan: of fewer columns than tokens, which no other call has."""
    return torch.ones((1, 1), dtype=torch.long)


def segment_mask(**asked: Any) -> Tensor | None:
    """The mask that transformers asks for: of a row with a plan only its window, `(1, 1, 1, 1)` int64, 0 for none.

    Many classes tell their attention of a window by the mask alone. The number stays on the CPU, where reading it
    waits for nothing. Any other call gets the mask of `sdpa`.
    """
    from transformers.masking_utils import sdpa_mask

    if asked['kv_length'] < asked['q_length']:
        return torch.full((1, 1, 1, 1), asked.get('local_size') or 0)
    return sdpa_mask(**asked)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: AttentionPlan | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' interface: `query` `(1, heads, length, size)` to `(1, length, heads, size)`.

    Raises NotImplementedError for what it does not compute in rows with a plan (a mask that the class made itself,
    biases, sparse keys), and for classes that keep the plan from their attention. The policy's start-up check then
    falls back to the padded layout.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if segments is None and _is_row(attention_mask):
        raise NotImplementedError(f'{type(module).__name__} does not get what its model is called with')
    written_out = softcap is not None or s_aux is not None
    if segments is None and not written_out:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if segments is None:
        causal = attention_mask is None and query.shape[2] > 1
        mask = _causal(query.shape[2], key.shape[2], query.device) if causal else attention_mask
        if mask is not None and mask.is_floating_point():
            mask = mask == 0
        output = _written_out(query, key, value, mask, scaling, dropout, softcap, s_aux)
        return output.transpose(1, 2).contiguous(), None
    window = _window(module, attention_mask, kwargs)
    share = segments.share
    if share.group is None:
        return _by_plan(query, key, value, segments, window, dropout, scaling, softcap, s_aux), None
    query, key, value = map(share.to_heads, (query, key, value))
    sinks = None if s_aux is None else share.heads(s_aux)
    return share.to_tokens(_by_plan(query, key, value, segments, window, dropout, scaling, softcap, sinks)), None


def _by_plan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: AttentionPlan,
    window: int | None,
    dropout: float,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of a row with a plan, `(1, length, heads, size)`."""
    written_out = softcap is not None or sinks is not None
    if not written_out and segments.blocks is None and fits(query, value, dropout):
        return varlen_attention(query, key, value, segments.calls(window, query.device), scaling)
    if softcap is not None and sinks is None and caps(query, value, dropout):
        return capped_attention(query, key, value, segments.block_mask(window, query.device), scaling, softcap)
    groups = query.shape[1] // key.shape[1]
    lengths = [span.stop - span.start for span in segments.spans]
    # Split once: the gradient of a split is one concatenation, that of each slice a full row of zeros.
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    indices = {span.start: index for index, span in enumerate(segments.spans)}
    outputs = []
    for index, span in enumerate(segments.spans):
        span_key, span_value = keys[index], values[index]
        if span.prefix_length:
            prefix = indices[span.prefix_start]
            span_key = torch.cat([keys[prefix][:, :, : span.prefix_length], span_key], dim=2)
            span_value = torch.cat([values[prefix][:, :, : span.prefix_length], span_value], dim=2)
        mask = segments.mask(span, window, query.device)
        if written_out:
            mask = _causal(lengths[index], lengths[index], query.device) if mask is None else mask
            output = _written_out(queries[index], span_key, span_value, mask, scaling, dropout, softcap, sinks)
            outputs.append(output.transpose(1, 2))
            continue
        if mask is not None and groups > 1:
            # Grouped queries with a mask fall back to the slow kernel on CUDA.
            span_key = span_key.repeat_interleave(groups, dim=1)
            span_value = span_value.repeat_interleave(groups, dim=1)
        output = F.scaled_dot_product_attention(
            queries[index],
            span_key,
            span_value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=mask is None and groups > 1,
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _is_row(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.long and mask.shape == (1, 1, 1, 1)


def _window(module: nn.Module, mask: Tensor | None, kwargs: Mapping[str, Any]) -> int | None:
    """The window of a call for a row with a plan; what else it asks for raises NotImplementedError."""
    name = type(module).__name__
    for unknown in ('position_bias', 'indices', 'block_indices'):
        if kwargs.get(unknown) is not None:
            raise NotImplementedError(f'attention by segment has no {unknown}, which {name} asks for')
    if mask is not None and not _is_row(mask):
        raise NotImplementedError(f'{name} makes a mask of its own, which attention by segment cannot heed')
    # Some classes say it in the mask alone (Qwen2-MoE), some hide it in a function laid over the mask (Gemma 3).
    return (0 if mask is None else int(mask)) or kwargs.get('sliding_window')


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones((queries, keys), dtype=torch.bool, device=device).tril(keys - queries)


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2) or a sink for each head (gpt-oss), `(batch, heads, queries, size)`.

    `mask` says what may be seen, `(queries, keys)` or `(batch, 1, queries, keys)`; `sinks` are `(heads,)`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    shares = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype)[..., : key.shape[2]]
    return F.dropout(shares, dropout) @ value


def register_segment_attention(compiled: bool = False) -> None:
    """Makes `segment` known to transformers, `compiled` for layers that torch.compile compiles.

    Those leave it out of what they compile, or each row would be compiled anew for its spans.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(
        SEGMENT_ATTENTION, torch.compiler.disable(segment_attention) if compiled else segment_attention
    )
    AttentionMaskInterface.register(SEGMENT_ATTENTION, segment_mask)


def knows_segment_attention() -> bool:
    """Whether it is known already: a name of all models of a process, with what a run chose for it."""
    from transformers import AttentionInterface

    return SEGMENT_ATTENTION in AttentionInterface()
