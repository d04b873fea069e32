"""The chunked op against the closed form in float64, and what it holds in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from align_anything.policies.token import logprob
from align_anything.policies.token.logprob import LogProbHead, chunked_logprob

HIDDEN, VOCABULARY, ROWS = 6, 11, 7


def reference(hidden, weight, targets, bias, scale, softcap):
    """log softmax(z)[target] and -Σ p log p, written out."""
    logits = scale * (hidden @ weight.T + (0 if bias is None else bias))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=torch.float64, requires_grad=True)
    return hidden, weight, bias, torch.randint(VOCABULARY, (ROWS,))


@pytest.mark.parametrize('tile', [(1, 1), (3, 4), (7, 5), (2, 11), (100, 100)])
@pytest.mark.parametrize('softcap', [None, 2.0])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('with_entropy', [False, True])
def test_values_and_gradients_equal_the_closed_form(inputs, monkeypatch, tile, softcap, with_bias, with_entropy):
    monkeypatch.setattr(logprob, 'tile_shape', lambda rows, vocabulary, on_cpu: tile)
    hidden, weight, bias, targets = inputs
    bias = bias if with_bias else None
    values, entropies = chunked_logprob(
        hidden, weight, targets, bias=bias, scale=0.7, softcap=softcap, with_entropy=with_entropy
    )
    expected, expected_entropies = reference(hidden, weight, targets, bias, 0.7, softcap)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ROWS, dtype=torch.float64)
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    loss, expected_loss = (values * upstream).sum(), (expected * upstream).sum()
    if with_entropy:
        torch.testing.assert_close(entropies, expected_entropies, rtol=1e-12, atol=1e-12)
        loss, expected_loss = loss + entropies.square().sum(), expected_loss + expected_entropies.square().sum()
    for found, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected_loss, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    targets = torch.randint(500, (5,))
    values, _ = chunked_logprob(hidden, weight, targets)
    expected, _ = reference(hidden.double(), weight.double(), targets, None, 1.0, None)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_gradients_are_summed_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16).bfloat16(), torch.randn(40, 16).bfloat16()
    targets = torch.zeros(300, dtype=torch.long)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    found = torch.autograd.grad(chunked_logprob(*leaves, targets)[0].sum(), leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.autograd.grad(reference(*wide, targets, None, 1.0, None)[0].sum(), wide)
    # One rounding to bfloat16 (8 bits: 2^-9 relative) at the very end, none in the sums of 300 and 40 terms.
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)


def test_entries_that_no_bias_lets_in_count_for_nothing(inputs, monkeypatch):
    monkeypatch.setattr(logprob, 'tile_shape', lambda rows, vocabulary, on_cpu: (7, 3))
    hidden, weight, bias, targets = (tensor.detach() for tensor in inputs)
    # The first tile is -inf alone, as the padding of a vocabulary may be.
    shut = torch.where(torch.arange(VOCABULARY) < 3, -torch.inf, bias)
    values, _ = chunked_logprob(hidden, weight, targets.clamp(min=3), bias=shut)
    expected, _ = reference(hidden, weight[3:], targets.clamp(min=3) - 3, bias[3:], 1.0, None)
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize('rows, vocabulary', [(0, 9), (1, 9), (4096, 131072), (100_000, 131072), (7, 1 << 26)])
def test_a_tile_fits_into_the_budget(rows, vocabulary):
    for on_cpu, budget in ((True, 1 << 22), (False, 1 << 25)):
        height, width = logprob.tile_shape(rows, vocabulary, on_cpu)
        assert 1 <= height <= max(rows, 1) and 1 <= width <= vocabulary and height * width <= budget


def test_frozen_weight_gets_no_gradient_buffer(inputs):
    hidden, weight, _, targets = inputs
    values, _ = chunked_logprob(hidden, weight.detach(), targets)
    values.sum().backward()
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize('plain', [True, False])
def test_heads_agree_whether_plain_or_wrapped(plain):
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY)
    head = LogProbHead(linear if plain else nn.Sequential(linear), scale=0.5, softcap=3.0)
    assert head.plain is plain
    hidden, targets = torch.randn(ROWS, HIDDEN, requires_grad=True), torch.randint(VOCABULARY, (ROWS,))
    values, entropies = head(hidden, targets, with_entropy=True)
    expected, expected_entropies = reference(hidden, linear.weight, targets, linear.bias, 0.5, 3.0)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(entropies, expected_entropies)
    (grad,) = torch.autograd.grad(values.sum(), [linear.weight])
    (wanted,) = torch.autograd.grad(expected.sum(), [linear.weight])
    torch.testing.assert_close(grad, wanted)


def test_no_units_still_reach_the_parameters(inputs):
    hidden, weight, _, _ = inputs
    values, _ = chunked_logprob(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    values.sum().backward()
    assert values.shape == (0,) and torch.equal(weight.grad, torch.zeros_like(weight))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return result


def test_no_tensor_of_length_times_vocabulary_exists(monkeypatch):
    monkeypatch.setattr(logprob, 'CHUNK_ELEMENTS', 16 * 4096)  # tiles of 512 x 128; the weight has 4096 x 8
    rows, vocabulary = 512, 4096
    hidden = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    with LargestTensor() as largest:
        values, _ = chunked_logprob(hidden, weight, torch.randint(vocabulary, (rows,)))
        values.sum().backward()
    assert largest.elements == 16 * 4096 < rows * vocabulary
