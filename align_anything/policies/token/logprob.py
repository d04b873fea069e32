"""The one op that turns hidden states into log-probabilities: in tiles, never holding `(length, vocabulary)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align_anything.core.errors import ModelError

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once on a CPU, in elements: 16 MiB of float32, which stay in its cache from one pass to the next."""
ACCELERATOR_CHUNKS = 8
"""How many times more an accelerator holds, which wants large products instead."""
TILE_ROWS = 4096


def tile_shape(rows: int, vocabulary: int, on_cpu: bool) -> tuple[int, int]:
    """Rows and vocabulary entries of a tile of logits that fits into the budget.

    A tile is as high as it may be, so that each piece of the weight is read, and its gradient written, least often.
    """
    budget = CHUNK_ELEMENTS if on_cpu else ACCELERATOR_CHUNKS * CHUNK_ELEMENTS
    height = max(1, min(rows, TILE_ROWS, budget))
    return height, min(vocabulary, budget // height)


Span = tuple[int, int]


class Group(NamedTuple):
    """Rows that are scored alike.

    Attributes:
        rows: their numbers; None for all of them.
        spans: the ids that their targets are one among; None for all ids.
        temperature: further divides what goes into their softmax.
    """

    rows: Tensor | None = None
    spans: Sequence[Span] | None = None
    temperature: float = 1.0


def _slices(stop: int, step: int, start: int = 0) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def _columns(spans: Sequence[Span], step: int) -> Iterator[slice]:
    return (columns for start, stop in spans for columns in _slices(stop, step, start))


def _pick(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor[index]


def _wide(tensor: Tensor) -> Tensor:
    # CUDA accumulates half precision in float32 and can return it; other devices need float32 operands for that.
    return tensor if tensor.is_cuda or tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` with a result of at least float32."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    logits = _matmul(hidden, weight.t())
    if bias is not None:
        logits += bias
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _find(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Where in a tile each target stands `(rows, 1)`, and whether it stands there at all `(rows,)`."""
    local = targets - columns.start
    width = columns.stop - columns.start
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


class _Head(NamedTuple):
    """What makes logits of hidden states."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def at(self, temperature: float) -> _Head:
        return self._replace(
            scale=self.scale / temperature, softcap=None if self.softcap is None else self.softcap / temperature
        )

    def logits(self, hidden: Tensor, columns: slice, wide_weight: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[columns]
        return _logits(hidden, wide_weight, bias, self.scale, self.softcap)


class _ChunkedLogProb(torch.autograd.Function):
    """Log-probability (and entropy) of target tokens; the logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        with_entropy: bool,
        groups: Sequence[Group],
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        normalizers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        head = _Head(weight, bias, scale, softcap)
        for index, spans, temperature in groups:
            own = head.at(temperature)
            found = _scored(_pick(hidden, index), _pick(targets, index), own, spans, with_entropy, dtype)
            for all_rows, values in zip((logprobs, normalizers, entropies), found, strict=False):
                all_rows[slice(None) if index is None else index] = values
        ctx.save_for_backward(hidden, targets, normalizers, entropies)
        # The parameters are kept by reference, not saved: ZeRO-3 frees and gathers them between the passes.
        ctx.head, ctx.with_entropy, ctx.groups = head, with_entropy, groups
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, normalizers, entropies = ctx.saved_tensors
        weight, bias = ctx.head.weight, ctx.head.bias
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Sums over tiles are made in the accumulation type; half precision would lose the small terms.
        sums = normalizers.dtype
        # Where one group has the whole vocabulary, each gradient is written once.
        blank = torch.empty_like if [group.spans for group in ctx.groups] == [_whole(weight)] else torch.zeros_like
        grads = (
            torch.zeros_like(hidden, dtype=sums) if needs_hidden else None,
            blank(weight) if needs_weight else None,
            blank(bias) if needs_bias else None,
        )
        for index, spans, temperature in ctx.groups:
            told = [_pick(tensor, index) for tensor in (targets, normalizers, grad_logprobs)]
            more = [_pick(tensor, index) for tensor in (entropies, grad_entropies)] if ctx.with_entropy else None
            own = torch.zeros_like(hidden[index], dtype=sums) if needs_hidden and index is not None else grads[0]
            add = blank is torch.zeros_like
            _add_gradients(ctx.head.at(temperature), _pick(hidden, index), spans, told, more, (own, *grads[1:]), add)
            if needs_hidden and index is not None:
                grads[0][index] = own
        grad_hidden = grads[0]
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, *grads[1:], None, None, None, None, None


def _whole(weight: Tensor) -> list[Span]:
    return [(0, weight.shape[0])]


def _scored(
    hidden: Tensor, targets: Tensor, head: _Head, spans: Sequence[Span], with_entropy: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Log-probabilities, normalizers and, on request, entropies of targets among the ids of `spans`, `(N,)` each."""
    logprobs = hidden.new_empty(len(targets), dtype=dtype)
    normalizers = torch.empty_like(logprobs)
    entropies = torch.empty_like(logprobs)
    lowest = torch.finfo(dtype).min
    height, width = tile_shape(len(targets), sum(stop - start for start, stop in spans), hidden.device.type == 'cpu')
    for rows in _slices(len(targets), height):
        wide_hidden = _wide(hidden[rows])
        chosen = logprobs.new_zeros(len(wide_hidden))
        total = torch.full_like(chosen, -torch.inf)
        expected = torch.zeros_like(chosen)
        for columns in _columns(spans, width):
            logits = head.logits(wide_hidden, columns, _wide(head.weight[columns]))
            index, inside = _find(targets[rows], columns)
            chosen = torch.where(inside, logits.gather(1, index).squeeze(1), chosen)
            before = total
            if with_entropy:
                total = torch.logaddexp(total, torch.logsumexp(logits, dim=-1))
                probabilities = (logits - total[:, None]).exp_()
                expected = expected * (before - total).exp() + probabilities.mul_(logits).sum(-1)
            else:
                # In place, where logsumexp would make a copy. A tile of -inf alone must not become NaN.
                peak = logits.amax(dim=-1).clamp_(min=lowest)
                total = torch.logaddexp(total, logits.sub_(peak[:, None]).exp_().sum(-1).log_().add_(peak))
        normalizers[rows] = total
        logprobs[rows] = chosen - total
        if with_entropy:
            entropies[rows] = total - expected
    return (logprobs, normalizers, entropies) if with_entropy else (logprobs, normalizers)


def _add_gradients(
    head: _Head,
    hidden: Tensor,
    spans: Sequence[Span],
    told: Sequence[Tensor],
    more: Sequence[Tensor] | None,
    grads: Sequence[Tensor | None],
    add: bool,
) -> None:
    """Writes the gradients of one group, or adds those of weight and bias to what other groups gave."""
    (targets, normalizers, grad_logprobs), (grad_hidden, grad_weight, grad_bias) = told, grads
    sums = normalizers.dtype
    height, width = tile_shape(len(targets), sum(stop - start for start, stop in spans), hidden.device.type == 'cpu')
    for columns in _columns(spans, width):
        tile_weight = _wide(head.weight[columns])
        weight_sum = None if grad_weight is None else torch.zeros_like(tile_weight, dtype=sums)
        bias_sum = None if grad_bias is None else torch.zeros_like(head.bias[columns], dtype=sums)
        for rows in _slices(len(targets), height):
            wide_hidden = _wide(hidden[rows])
            logits = head.logits(wide_hidden, columns, tile_weight)
            index, inside = _find(targets[rows], columns)
            entropy = None if more is None else [tensor[rows] for tensor in more]
            grad_logits = _logit_gradient(head, logits, index, inside, normalizers[rows], grad_logprobs[rows], entropy)
            narrow = grad_logits.to(wide_hidden.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden[rows], narrow, tile_weight)
            if weight_sum is not None:
                _add_product(weight_sum, narrow.t(), wide_hidden)
            if bias_sum is not None:
                bias_sum += grad_logits.sum(0)
        for grad, own in ((grad_weight, weight_sum), (grad_bias, bias_sum)):
            if grad is not None:
                grad[columns] = grad[columns] + own if add else own


def _logit_gradient(
    head: _Head,
    logits: Tensor,
    index: Tensor,
    inside: Tensor,
    normalizers: Tensor,
    upstream: Tensor,
    entropy: Sequence[Tensor] | None,
) -> Tensor:
    """Gradient of the loss with respect to a tile of `hidden @ weight.T + bias`, in the memory of `logits`.

    `entropy` are the entropies of the rows and the gradients of these.
    """
    slope = None if head.softcap is None else 1.0 - (logits / head.softcap).square_()
    gradient = logits.sub_(normalizers[:, None])
    if entropy is not None:
        # dH/dz = -p (log p + H)
        entropies, grad_entropies = entropy
        shift = (gradient + entropies[:, None]).mul_(grad_entropies[:, None]).add_(upstream[:, None])
        gradient.exp_().mul_(shift).neg_()
    else:
        gradient.exp_().mul_(-upstream[:, None])
    gradient.scatter_add_(1, index, (upstream * inside)[:, None])
    if slope is not None:
        gradient.mul_(slope)
    return gradient.mul_(head.scale) if head.scale != 1.0 else gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, without rounding the product first."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _matmul(left, right)


def chunked_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    groups: Sequence[Group] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of `targets` under `softmax(softcap * tanh(scale * (hidden @ weight.T + bias) / softcap))`.

    Args:
        hidden: `(N, hidden_size)`, the states that predict the targets.
        weight: `(vocabulary, hidden_size)`; tied to the embedding or not.
        targets: `(N,)` int64.
        with_entropy: also return the entropy of each distribution.
        groups: which rows are scored among which ids; each row is in one group, and its target in one of the spans.
            Rows of the weight that no span names are not read. None scores all among all.

    Returns:
        Log-probabilities `(N,)` in float32 (float64 for float64 input) and, on request, entropies `(N,)` in nats.
    """
    groups = [Group(spans=_whole(weight))] if groups is None else groups
    values, entropies = _ChunkedLogProb.apply(hidden, weight, bias, targets, scale, softcap, with_entropy, groups)
    return values, entropies if with_entropy else None


class LogProbHead(nn.Module):
    """Scores targets with the model's own output embedding.

    It holds the same parameters as the model's head, as a module of its own, so that ZeRO-3 gathers them once around
    the chunked op in both passes. A head that is not a plain linear layer (an adapter on it, a quantised one) is
    called chunk by chunk under checkpointing instead.
    """

    def __init__(self, head: nn.Module, scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.scale = self._scale = scale
        self.softcap = self._softcap = softcap
        self.plain = type(head) is nn.Linear
        if self.plain:
            self.weight = head.weight
            self.bias = head.bias
        else:
            self.head = head

    def set_temperature(self, temperature: float, of_media: Mapping[str, float] = MappingProxyType({})) -> None:
        """Divides what goes into the softmax by `temperature` from now on, behind the soft cap.

        Raises ModelError for temperatures `of_media`, which it does not tell from text.
        """
        if of_media:
            raise ModelError('scores over the whole vocabulary have one temperature.')
        self.scale = self._scale / temperature
        self.softcap = None if self._softcap is None else self._softcap / temperature

    def forward(
        self, hidden: Tensor, targets: Tensor, with_entropy: bool = False, groups: Sequence[Group] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns float32 log-probabilities `(N,)` of `targets` `(N,)` after `hidden` `(N, size)`, and entropies.

        `groups` says which rows are scored among which ids, as `chunked_logprob` takes it.
        """
        if self.plain:
            return chunked_logprob(
                hidden,
                self.weight,
                targets,
                bias=self.bias,
                scale=self.scale,
                softcap=self.softcap,
                with_entropy=with_entropy,
                groups=groups,
            )
        groups = [Group()] if groups is None else groups
        found = [self._chunks(_pick(hidden, group.rows), _pick(targets, group.rows), group) for group in groups]
        values, entropies = (torch.cat(columns) for columns in zip(*found, strict=True))
        if len(groups) > 1:
            order = torch.cat([group.rows for group in groups]).argsort()
            values, entropies = values[order], entropies[order]
        return values, entropies if with_entropy else None

    def _chunks(self, hidden: Tensor, targets: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        step = 1024
        chunks = [
            checkpoint(self._score, hidden[rows], targets[rows], group, use_reentrant=False)
            for rows in _slices(max(len(targets), 1), step)
        ]
        values, entropies = zip(*chunks, strict=True)
        return torch.cat(values), torch.cat(entropies)

    def _score(self, hidden: Tensor, targets: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        logits = self.scale * self.head(hidden).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logits = logits / group.temperature
        if group.spans is not None:
            logits = logits.masked_fill(
                ~inside(group.spans, logits.shape[-1], logits.device), torch.finfo(logits.dtype).min
            )
        log_softmax = torch.log_softmax(logits, dim=-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        return log_softmax.gather(1, targets[:, None]).squeeze(1), entropy


def inside(spans: Sequence[Span], rows: int, device: torch.device | str = 'cpu') -> Tensor:
    """Returns of each id below `rows` whether one of the spans holds it, `(rows,)` bool."""
    found = torch.zeros(rows, dtype=torch.bool, device=device)
    for start, stop in spans:
        found[start:stop] = True
    return found
