"""The one op that turns hidden states into log-probabilities: in tiles, never holding `(length, vocabulary)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


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
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        normalizers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        lowest = torch.finfo(dtype).min
        height, width = tile_shape(len(targets), weight.shape[0], hidden.device.type == 'cpu')
        for rows in _slices(len(targets), height):
            wide_hidden = _wide(hidden[rows])
            chosen = logprobs.new_zeros(len(wide_hidden))
            total = torch.full_like(chosen, -torch.inf)
            expected = torch.zeros_like(chosen)
            for columns in _slices(weight.shape[0], width):
                tile_bias = None if bias is None else bias[columns]
                logits = _logits(wide_hidden, _wide(weight[columns]), tile_bias, scale, softcap)
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
        ctx.save_for_backward(hidden, targets, normalizers, entropies)
        # The parameters are kept by reference, not saved: ZeRO-3 frees and gathers them between the passes.
        ctx.weight, ctx.bias = weight, bias
        ctx.scale, ctx.softcap, ctx.with_entropy = scale, softcap, with_entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, normalizers, _ = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Sums over tiles are made in the accumulation type; half precision would lose the small terms.
        sums = normalizers.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=sums) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        height, width = tile_shape(len(targets), weight.shape[0], hidden.device.type == 'cpu')
        for columns in _slices(weight.shape[0], width):
            tile_weight = _wide(weight[columns])
            tile_bias = None if bias is None else bias[columns]
            weight_sum = torch.zeros_like(tile_weight, dtype=sums) if needs_weight else None
            bias_sum = torch.zeros_like(tile_bias, dtype=sums) if needs_bias else None
            for rows in _slices(len(targets), height):
                wide_hidden = _wide(hidden[rows])
                logits = _logits(wide_hidden, tile_weight, tile_bias, ctx.scale, ctx.softcap)
                grad_logits = _logit_gradient(ctx, logits, rows, columns, grad_logprobs, grad_entropies)
                narrow = grad_logits.to(wide_hidden.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], narrow, tile_weight)
                if weight_sum is not None:
                    _add_product(weight_sum, narrow.t(), wide_hidden)
                if bias_sum is not None:
                    bias_sum += grad_logits.sum(0)
            if grad_weight is not None:
                grad_weight[columns] = weight_sum
            if grad_bias is not None:
                grad_bias[columns] = bias_sum
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _logit_gradient(
    ctx: Any, logits: Tensor, rows: slice, columns: slice, grad_logprobs: Tensor, grad_entropies: Tensor
) -> Tensor:
    """Gradient of the loss with respect to a tile of `hidden @ weight.T + bias`, in the memory of `logits`."""
    _, targets, normalizers, entropies = ctx.saved_tensors
    slope = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square_()
    upstream = grad_logprobs[rows]
    gradient = logits.sub_(normalizers[rows, None])
    if ctx.with_entropy:
        # dH/dz = -p (log p + H)
        shift = (gradient + entropies[rows, None]).mul_(grad_entropies[rows, None]).add_(upstream[:, None])
        gradient.exp_().mul_(shift).neg_()
    else:
        gradient.exp_().mul_(-upstream[:, None])
    index, inside = _find(targets[rows], columns)
    gradient.scatter_add_(1, index, (upstream * inside)[:, None])
    if slope is not None:
        gradient.mul_(slope)
    return gradient.mul_(ctx.scale) if ctx.scale != 1.0 else gradient


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
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of `targets` under `softmax(softcap * tanh(scale * (hidden @ weight.T + bias) / softcap))`.

    Args:
        hidden: `(N, hidden_size)`, the states that predict the targets.
        weight: `(vocabulary, hidden_size)`; tied to the embedding or not.
        targets: `(N,)` int64.
        with_entropy: also return the entropy of each distribution.

    Returns:
        Log-probabilities `(N,)` in float32 (float64 for float64 input) and, on request, entropies `(N,)` in nats.
    """
    values, entropies = _ChunkedLogProb.apply(hidden, weight, bias, targets, scale, softcap, with_entropy)
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

    def set_temperature(self, temperature: float) -> None:
        """Divides what goes into the softmax by `temperature` from now on, behind the soft cap."""
        self.scale = self._scale / temperature
        self.softcap = None if self._softcap is None else self._softcap / temperature

    def forward(self, hidden: Tensor, targets: Tensor, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Returns float32 log-probabilities `(N,)` of `targets` `(N,)` after `hidden` `(N, size)`, and entropies."""
        if self.plain:
            return chunked_logprob(
                hidden,
                self.weight,
                targets,
                bias=self.bias,
                scale=self.scale,
                softcap=self.softcap,
                with_entropy=with_entropy,
            )
        step = 1024
        chunks = [
            checkpoint(self._score, hidden[start : start + step], targets[start : start + step], use_reentrant=False)
            for start in range(0, max(len(targets), 1), step)
        ]
        values, entropies = (torch.cat(columns) for columns in zip(*chunks, strict=True))
        return values, entropies if with_entropy else None

    def _score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.scale * self.head(hidden).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        log_softmax = torch.log_softmax(logits, dim=-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        return log_softmax.gather(1, targets[:, None]).squeeze(1), entropy
