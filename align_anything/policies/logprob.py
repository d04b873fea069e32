"""The one op that turns hidden states into log-probabilities: in chunks, never holding `(length, vocabulary)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once, in elements: 64 MiB of float32, and as much again in the backward pass."""


def chunk_rows(vocabulary: int) -> int:
    """Rows whose logits fit into the budget; at least 16, so that a huge vocabulary still multiplies matrices."""
    return max(16, CHUNK_ELEMENTS // vocabulary)


def _wide(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    # CUDA accumulates half precision in float32 and can return it; other devices need float32 operands for that.
    if hidden.is_cuda or hidden.dtype in (torch.float32, torch.float64):
        return hidden, weight
    return hidden.float(), weight.float()


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` with a result of at least float32."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def _transform(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    if scale != 1.0:
        logits = logits.mul_(scale)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits


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
        wide_hidden, wide_weight = _wide(hidden, weight)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        normalizers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        step = chunk_rows(weight.shape[0])
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            logits = _matmul(wide_hidden[rows], wide_weight.t())
            if bias is not None:
                logits += bias
            logits = _transform(logits, scale, softcap)
            normalizers[rows] = torch.logsumexp(logits, dim=-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normalizers[rows]
            if with_entropy:
                probabilities = (logits - normalizers[rows, None]).exp_()
                entropies[rows] = normalizers[rows] - probabilities.mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, targets, normalizers, entropies)
        # The parameters are kept by reference, not saved: ZeRO-3 frees and gathers them between the passes.
        ctx.weight, ctx.bias = weight, bias
        ctx.scale, ctx.softcap, ctx.with_entropy = scale, softcap, with_entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, normalizers, entropies = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide_hidden, wide_weight = _wide(hidden, weight)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # One buffer in the accumulation type; half-precision sums over chunks would lose the small terms.
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if needs_bias else None
        step = chunk_rows(weight.shape[0])
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            logits = _matmul(wide_hidden[rows], wide_weight.t())
            if bias is not None:
                logits += bias
            logits = _transform(logits, ctx.scale, ctx.softcap)
            slope = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square_()
            upstream = grad_logprobs[rows, None]
            if ctx.with_entropy:
                log_softmax = logits - normalizers[rows, None]
                probabilities = log_softmax.exp()
                # dH/dz = -p (log p + H)
                shift = (log_softmax + entropies[rows, None]).mul_(grad_entropies[rows, None])
                grad_logits = probabilities.mul_(shift.add_(upstream)).neg_()
            else:
                grad_logits = logits.sub_(normalizers[rows, None]).exp_().mul_(upstream).neg_()
            grad_logits.scatter_add_(1, targets[rows, None], upstream)
            if slope is not None:
                grad_logits.mul_(slope)
            if ctx.scale != 1.0:
                grad_logits.mul_(ctx.scale)
            narrow = grad_logits.to(wide_hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (narrow @ wide_weight).to(hidden.dtype)
            if grad_weight is not None:
                if narrow.dtype == grad_weight.dtype:
                    grad_weight.addmm_(narrow.t(), wide_hidden[rows])
                else:
                    grad_weight += _matmul(narrow.t(), wide_hidden[rows])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


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
        self.scale = scale
        self.softcap = softcap
        self.plain = type(head) is nn.Linear
        if self.plain:
            self.weight = head.weight
            self.bias = head.bias
        else:
            self.head = head

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
        values, entropies = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return values, entropies if with_entropy else None

    def _score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.scale * self.head(hidden).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        log_softmax = torch.log_softmax(logits, dim=-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        return log_softmax.gather(1, targets[:, None]).squeeze(1), entropy
