"""FlexAttention of rows with soft caps: who sees whom, and on a CPU in float64 what attention by segment computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from align_anything.policies.token import attention as by_segment
from align_anything.policies.token import flex
from align_anything.policies.token.attention import AttentionPlan, row_mask, segment_attention
from align_anything.policies.token.spans import Span
from tests.harness.every_class import checked_scores, load_as_run
from tests.harness.kernels import lacking

BRANCHES = (Span(0, 5), Span(5, 9, 0, 5), Span(9, 12), Span(12, 14, 0, 3), Span(14, 19, 0, 5), Span(19, 20, 9, 12))
PACKED = (Span(0, 5), Span(5, 6), Span(6, 12))
ROWS = pytest.mark.parametrize('spans', [BRANCHES, PACKED], ids=['branches', 'packed'])
CPU = torch.device('cpu')
CAP = 1.5


def media(spans: tuple[Span, ...]) -> Tensor:
    """Two items: one inside the first span, one that ends the row."""
    blocks = torch.zeros(spans[-1].stop, dtype=torch.long)
    blocks[1:4], blocks[-3:] = 1, 2
    return blocks


@ROWS
@pytest.mark.parametrize('window', [None, 1, 3, 4, 7, 50])
@pytest.mark.parametrize('with_media', [False, True], ids=['text', 'media'])
def test_who_sees_whom_is_what_the_plan_says(spans, window, with_media: bool) -> None:
    blocks = media(spans) if with_media else None
    plan, length = AttentionPlan(spans, blocks), spans[-1].stop
    wanted = torch.zeros((length, length), dtype=torch.bool)
    for span in spans:
        keys = [*range(span.prefix_start, span.prefix_stop), *range(span.start, span.stop)]
        mask = plan.mask(span, window, CPU)
        causal = torch.ones((span.stop - span.start, len(keys)), dtype=torch.bool).tril(span.prefix_length)
        wanted[span.start : span.stop, keys] = causal if mask is None else mask
    each = torch.arange(length)
    none = torch.zeros((), dtype=torch.long)
    found = flex.visible_in(spans, window, blocks, CPU)(none, none, each[:, None], each[None, :])
    assert torch.equal(found, wanted)


@lacking(64, size=8, values=512)
def test_what_it_lacks_goes_another_way(query, value, dropout: float, taken: bool) -> None:
    assert flex.caps(query, value, dropout) is taken


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Sends soft-capped rows to FlexAttention here too: torch writes it out, backward as well, but says it does not."""
    asked: list[Tensor] = []
    monkeypatch.setattr(torch_flex, '_validate_device', lambda *_: None)
    monkeypatch.setattr(by_segment, 'caps', lambda query, value, dropout: asked.append(query) or True)
    return asked


def attended(spans, window, blocks, heads=(4, 2)) -> list[Tensor]:
    """The output of a row and the gradients of its queries, keys and values, of some weighted sum of the output."""
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn((1, number, spans[-1].stop, 8), generator=generator, dtype=torch.float64).requires_grad_()
        for number in (heads[0], heads[1], heads[1])
    ]
    mask = row_mask()[:, :, None, None] * (window or 0)
    output, _ = segment_attention(nn.Module(), *made, mask, segments=AttentionPlan(spans, blocks), softcap=CAP)
    aims = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return [output, *torch.autograd.grad((output * aims).sum(), made)]


@pytest.mark.extended
@ROWS
@pytest.mark.parametrize(
    ('window', 'heads', 'with_media'),
    [(None, (4, 2), False), (3, (4, 4), False), (7, (4, 2), True), (None, (4, 4), True)],
)
def test_it_computes_attention_by_segment(spans, window, heads, with_media: bool, request) -> None:
    blocks = media(spans) if with_media else None
    expected = attended(spans, window, blocks, heads)
    asked = request.getfixturevalue('on_cpu')
    for found, wanted in zip(attended(spans, window, blocks, heads), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    assert len(asked) == 1


@pytest.mark.extended
@pytest.mark.parametrize('layout', ['shared_prefix', 'packed'])
def test_a_family_scores_by_it_as_its_plain_class_does(layout: str, on_cpu: list[Tensor]) -> None:
    model, spec, plain = load_as_run('gemma2', query_pre_attn_scalar=1, attn_logit_softcapping=1.0)
    found, scores = checked_scores(model, spec, layout)
    assert (found, bool(on_cpu)) == (layout, True)
    torch.testing.assert_close(scores, plain, atol=1e-3, rtol=0)


@pytest.mark.gpu
@ROWS
@pytest.mark.parametrize('window', [None, 4])
def test_the_kernel_computes_what_is_written_out(spans, window) -> None:
    # Longer than a block of the kernel.
    spans = tuple(
        Span(*(40 * number for number in (one.start, one.stop, one.prefix_start, one.prefix_stop))) for one in spans
    )
    window = window and 40 * window
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn((1, heads, spans[-1].stop, 64), generator=generator) for heads in (4, 2, 2)]
    aims = torch.randn((1, spans[-1].stop, 4, 64), generator=generator)
    found = []
    for device, dtype in (('cpu', torch.float64), ('cuda', torch.bfloat16)):
        tensors = [tensor.to(device, dtype).requires_grad_() for tensor in made]
        mask = row_mask()[:, :, None, None] * (window or 0)
        assert flex.caps(tensors[0], tensors[2], 0.0) is (device == 'cuda')
        output, _ = segment_attention(nn.Module(), *tensors, mask, segments=AttentionPlan(spans), softcap=CAP)
        gradients = torch.autograd.grad((output * aims.to(device, dtype)).sum(), tensors)
        found.append([tensor.double().cpu() for tensor in (output, *gradients)])
    for exact, half in zip(*found, strict=True):
        assert float((half - exact).norm() / exact.norm()) < 0.02
