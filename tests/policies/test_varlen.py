"""The kernel of variable lengths, emulated in float64: what it is asked computes attention by segment."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen as torch_varlen

from align_anything.policies.token import attention as by_segment
from align_anything.policies.token import varlen
from align_anything.policies.token.attention import AttentionPlan, row_mask, segment_attention
from align_anything.policies.token.spans import Span
from tests.harness.every_class import checked_scores, load_as_run
from tests.harness.kernels import lacking
from tests.harness.varlen import _backward, _forward, emulate

BRANCHES = (Span(0, 5), Span(5, 9, 0, 5), Span(9, 12), Span(12, 14, 0, 3), Span(14, 19, 0, 5), Span(19, 20, 9, 12))
PACKED = (Span(0, 5), Span(5, 6), Span(6, 12))


@pytest.fixture(autouse=True)
def emulated() -> None:
    emulate()


def attended(spans, window, kernel: bool, monkeypatch: pytest.MonkeyPatch, heads=(4, 2)) -> list[Tensor]:
    """The output of a row and the gradients of its queries, keys and values, of some weighted sum of the output."""
    monkeypatch.setattr(by_segment, 'fits', lambda *_: kernel)
    generator = torch.Generator().manual_seed(0)
    length = spans[-1].stop
    made = [
        torch.randn((1, number, length, 8), generator=generator, dtype=torch.float64).requires_grad_()
        for number in (heads[0], heads[1], heads[1])
    ]
    output, _ = segment_attention(
        nn.Module(), *made, row_mask()[:, :, None, None] * (window or 0), segments=AttentionPlan(spans)
    )
    aims = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return [output, *torch.autograd.grad((output * aims).sum(), made)]


@pytest.mark.parametrize('spans', [BRANCHES, PACKED], ids=['branches', 'packed'])
@pytest.mark.parametrize('window', [None, 1, 3, 4, 7, 50])
@pytest.mark.parametrize('heads', [(4, 4), (4, 2)], ids=['heads', 'groups'])
def test_it_computes_attention_by_segment(spans, window, heads, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = attended(spans, window, False, monkeypatch, heads)
    for found, wanted in zip(attended(spans, window, True, monkeypatch, heads), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_prefix_is_attended_once_for_all_that_branch_from_it() -> None:
    calls = varlen.calls_of(BRANCHES, None, torch.device('cpu'))
    assert calls.own.bounds.tolist() == [0, 5, 9, 12, 14, 19, 20]
    assert calls.queries.bounds.tolist() == [0, 9, 11, 12]
    assert calls.query_index.tolist() == [5, 6, 7, 8, 14, 15, 16, 17, 18, 12, 13, 19]
    assert calls.keys.bounds.tolist() == [0, 5, 8, 11]
    assert calls.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 9, 10, 11]
    assert (calls.queries.longest, calls.keys.longest) == (9, 5)


def test_the_emulation_has_the_signature_of_the_operators() -> None:
    for own, operator in ((_forward, torch_varlen._varlen_attn), (_backward, torch_varlen._varlen_attn_backward)):
        assert list(inspect.signature(own).parameters) == list(inspect.signature(operator._init_fn).parameters)


def test_the_emulation_computes_what_sdpa_does() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn((7, 2, 8), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    output = torch_varlen.varlen_attn(query, key, value, bounds, bounds, 4, 4, window_size=(-1, 0), scale=0.3)
    rows = [
        F.scaled_dot_product_attention(
            *(tensor[start:stop].transpose(0, 1) for tensor in (query, key, value)), is_causal=True, scale=0.3
        ).transpose(0, 1)
        for start, stop in ((0, 3), (3, 7))
    ]
    expected = torch.cat(rows)
    torch.testing.assert_close(output, expected)
    aims = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((output * aims).sum(), (query, key, value), retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((expected * aims).sum(), (query, key, value)))


# A window by the mask, one beside it, none; groups of queries.
@pytest.mark.parametrize('model_type', ['qwen2_moe', 'mistral', 'gemma3', 'llama'])
@pytest.mark.parametrize('layout', ['shared_prefix', 'packed'])
def test_families_score_by_it_as_their_plain_class_does(model_type, layout, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec, plain = load_as_run(model_type)
    asked = []
    monkeypatch.setattr(by_segment, 'fits', lambda query, value, dropout: asked.append(query) or True)
    found, scores = checked_scores(model, spec, layout)
    assert (found, bool(asked)) == (layout, True)
    torch.testing.assert_close(scores, plain, atol=1e-3, rtol=0)


@lacking(8, size=12, values=16)
def test_what_it_lacks_goes_another_way(query, value, dropout: float, taken: bool) -> None:
    assert varlen.fits(query, value, dropout) is taken


@pytest.mark.gpu
@pytest.mark.parametrize('spans', [BRANCHES, PACKED], ids=['branches', 'packed'])
@pytest.mark.parametrize('window', [None, 4])
def test_the_kernel_computes_what_padded_rows_do(spans, window) -> None:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn((1, heads, spans[-1].stop, 64), generator=generator) for heads in (4, 2, 2)]
    aims = torch.randn((1, spans[-1].stop, 4, 64), generator=generator)
    found = []
    for device, dtype in (('cpu', torch.float64), ('cuda', torch.bfloat16)):
        tensors = [tensor.to(device, dtype).requires_grad_() for tensor in made]
        mask = row_mask()[:, :, None, None] * (window or 0)
        assert varlen.fits(tensors[0], tensors[2], 0.0) is (device == 'cuda')
        output, _ = segment_attention(nn.Module(), *tensors, mask, segments=AttentionPlan(spans))
        gradients = torch.autograd.grad((output * aims.to(device, dtype)).sum(), tensors)
        found.append([tensor.double().cpu() for tensor in (output, *gradients)])
    for exact, half in zip(*found, strict=True):
        assert float((half - exact).norm() / exact.norm()) < 0.02
