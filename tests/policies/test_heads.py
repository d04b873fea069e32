"""Scores of codes among the codes of their book: against the closed form in float64, whatever head writes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.models.codes import KindOfCodes, MediaCodes
from align_anything.models.output_heads import OutputHead
from align_anything.policies.token import logprob
from align_anything.policies.token.heads import Guidance, RangeHead, among
from align_anything.policies.token.logprob import Group, chunked_logprob

TEXT, BOOKS, HIDDEN = 9, (4, 3), 6
ROWS = TEXT + sum(BOOKS) + 2
CLOSING = ROWS - 1
SOUND = KindOfCodes('audio', BOOKS, (TEXT, TEXT + BOOKS[0]), opening=(ROWS - 2,), closing=(CLOSING,))
CODES = MediaCodes({'audio': SOUND}, {}, restricted=True)
IDS = [0, 3, ROWS - 2, 9, 13, 12, 15, CLOSING, 8]
"""Text, the opening, codes of the first and the second book in turn, the closing, text."""


def allowed(token: int) -> list[int]:
    """Which ids could stand where this one stands, written out."""
    first, second = list(range(9, 13)), list(range(13, 16))
    if token in [*first, CLOSING]:
        return [*first, CLOSING]
    return second if token in second else [*range(9), ROWS - 2, CLOSING]


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: list[int], temperature: float = 1.0):
    values, entropies = [], []
    for state, token in zip(hidden, targets, strict=True):
        log_p = torch.log_softmax((weight[allowed(token)] @ state) / temperature, 0)
        values.append(log_p[allowed(token).index(token)])
        entropies.append(-(log_p.exp() * log_p).sum())
    return torch.stack(values), torch.stack(entropies)


@pytest.fixture
def parts() -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(len(IDS), HIDDEN, dtype=torch.float64, requires_grad=True)
    return hidden, nn.Linear(HIDDEN, ROWS, bias=False).double(), torch.tensor(IDS)


class Adapted(nn.Module):
    """A head that is no plain linear layer, as one with an adapter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden)


@pytest.mark.parametrize('tile', [(1, 1), (3, 2), (100, 100)])
@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_values_entropies_and_gradients_are_those_of_the_ranges(parts, monkeypatch, tile, temperature):
    monkeypatch.setattr(logprob, 'tile_shape', lambda rows, vocabulary, on_cpu: tile)
    hidden, linear, targets = parts
    head = RangeHead([OutputHead((0, ROWS), linear)], CODES, 1.0, None)
    head.set_temperature(temperature)
    values, entropies = head(hidden, targets, True)
    expected, expected_entropies = reference(hidden, linear.weight, IDS, temperature)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(len(IDS), dtype=torch.float64)
    leaves = [hidden, linear.weight]
    found = torch.autograd.grad((values * upstream).sum() + entropies.square().sum(), leaves)
    wanted = torch.autograd.grad((expected * upstream).sum() + expected_entropies.square().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head(hidden, targets)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('softcap', [None, 2.0])
def test_codes_have_a_temperature_of_their_own(parts, softcap):
    hidden, linear, _ = parts
    targets = torch.tensor([0, 9, 13])
    one, other = (RangeHead([OutputHead((0, ROWS), linear)], CODES, 1.0, softcap) for _ in range(2))
    one.set_temperature(0.5, {'audio': 2.0})
    for temperature, which in ((0.5, [0]), (2.0, [1, 2])):
        other.set_temperature(temperature)
        expected = other(hidden[which], targets[which], True)
        for found, wanted in zip(one(hidden[:3], targets, True), expected, strict=True):
            torch.testing.assert_close(found[which], wanted, rtol=1e-12, atol=1e-12)


def test_a_head_with_an_adapter_scores_alike(parts):
    hidden, linear, targets = parts
    adapted = RangeHead([OutputHead((0, ROWS), Adapted(linear))], CODES, 1.0, None)
    values, entropies = adapted(hidden, targets, True)
    expected, expected_entropies = reference(hidden.float(), linear.weight.float(), IDS)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-5, atol=1e-5)


def test_rows_out_of_the_range_are_not_read_and_have_no_gradient(parts):
    hidden, linear, _ = parts
    with torch.no_grad():
        linear.weight[13:16] = torch.nan
    head = RangeHead([OutputHead((0, ROWS), linear)], CODES, 1.0, None)
    values, _ = head(hidden[:3], torch.tensor([0, 9, CLOSING]))
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), [linear.weight])
    assert not gradient[13:16].any() and gradient[:13].any()


def test_two_heads_score_what_each_of_them_writes():
    torch.manual_seed(0)
    picture = KindOfCodes('image', (5,), (TEXT,), opening=(7,), closing=(8,), size=(2, 2))
    codes = MediaCodes({'image': picture}, {}, separate=True)
    text, own, before = (
        nn.Linear(HIDDEN, TEXT),
        nn.Linear(HIDDEN, 5),
        nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU()),
    )
    head = RangeHead([OutputHead((0, TEXT), text), OutputHead((TEXT, TEXT + 5), own, before)], codes, 1.0, None)
    hidden, targets = torch.randn(4, HIDDEN), torch.tensor([2, 9, 13, 8])
    values, _ = head(hidden, targets)
    by_text, by_own = text(hidden).log_softmax(-1), own(before(hidden)).log_softmax(-1)
    expected = torch.stack([by_text[0, 2], by_own[1, 0], by_own[2, 4], by_text[3, 8]])
    torch.testing.assert_close(values, expected)
    # Ranks that hold no codes call the head of codes all the same.
    values, _ = head(hidden[:1], targets[:1])
    values.sum().backward()
    assert own.weight.grad is not None and not own.weight.grad.any()
    assert all(parameter.grad is not None for parameter in before.parameters())


def test_ids_of_one_set_that_two_heads_write_are_refused():
    linear = nn.Linear(HIDDEN, ROWS)
    with pytest.raises(ModelError, match='no one head'):
        RangeHead([OutputHead((0, 11), linear), OutputHead((11, ROWS), linear)], CODES, 1.0, None)


def test_masks_say_the_same():
    mask = among(CODES, torch.tensor(IDS), ROWS)
    assert [row.nonzero().flatten().tolist() for row in mask] == [sorted(allowed(token)) for token in IDS]


def test_without_any_rows_there_are_gradients_of_nothing():
    weight = torch.randn(8, HIDDEN, requires_grad=True)
    hidden = torch.randn(0, HIDDEN, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    values, _ = chunked_logprob(hidden, weight, empty, groups=[Group(empty, [(0, 4)]), Group(empty, [(4, 8)])])
    values.sum().backward()
    assert len(values) == 0 and not weight.grad.any()


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_guided_scores_are_those_of_mixed_logits(dtype):
    """The mixture stands in front of the last linear layer, whatever comes before that one."""
    torch.manual_seed(0)
    picture = KindOfCodes('image', (5,), (TEXT,), opening=(7,), closing=(8,), size=(2, 2))
    codes = MediaCodes({'image': picture}, {}, separate=True)
    text, own = nn.Linear(HIDDEN, TEXT), nn.Linear(HIDDEN, 5)
    before = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU())
    head = RangeHead([OutputHead((0, TEXT), text), OutputHead((TEXT, TEXT + 5), own, before)], codes, 1.0, None)
    head = head.to(dtype)
    head.set_temperature(0.5)
    targets = torch.tensor([2, 9, 13, 8])
    hidden, other = torch.randn(2, 4, HIDDEN).to(dtype).requires_grad_()
    other = torch.where((targets >= TEXT)[:, None], other, hidden)
    values, entropies = head(hidden, targets, True, Guidance(other, 3.0))
    logits = 3.0 * own(before(hidden)).double() - 2.0 * own(before(other)).double()
    by_own, by_text = (logits / 0.5).log_softmax(-1), (text(hidden).double() / 0.5).log_softmax(-1)
    expected = torch.stack([by_text[0, 2], by_own[1, 0], by_own[2, 4], by_text[3, 8]])
    close = {'rtol': 1e-12, 'atol': 1e-12} if dtype == torch.float64 else {'rtol': 0.05, 'atol': 0.05}
    torch.testing.assert_close(values.double(), expected, **close)
    spread = -(by_own.exp() * by_own).sum(-1)
    torch.testing.assert_close(entropies[1:3].double(), spread[1:3], **close)
    if dtype == torch.float64:
        found = torch.autograd.grad(values.sum(), [own.weight, before[0].weight], retain_graph=True)
        wanted = torch.autograd.grad(expected.sum(), [own.weight, before[0].weight])
        for one, two in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    # What is not guided is what it was, to the bit, whatever the scale.
    plain, _ = head(hidden, targets)
    assert torch.equal(values[[0, 3]], plain[[0, 3]]) and not torch.equal(values[1:3], plain[1:3])
