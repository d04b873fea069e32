"""Scores of responses are what the plain body and the head give to a lone sequence, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from align_anything.core.types import Example
from align_anything.models.any_model import add_score_head
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from tests.invariants.families import Row, groups_of, load_plain, ordinary, rows_of, spec_of

Tiny = Callable[..., Path]
FAMILIES = ('llama', 'llava', 'qwen2_vl')
# Each layout and family once.
FAMILY_LAYOUTS = [(family, layout) for family in FAMILIES for layout in LAYOUTS]


@cache
def rows(folder: Path, pad_is_eos: bool = False) -> tuple[Row, ...]:
    spec = spec_of(folder, pad_is_eos=pad_is_eos)
    return (*rows_of(spec, folder.name), *groups_of(spec, folder.name))


def stir(model: nn.Module) -> nn.Module:
    """Adds noise to every weight, by name, so that two classes of one checkpoint get the same."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(number)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


@cache
def head(size: int) -> Tensor:
    return torch.randn(1, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@cache
def expected(folder: Path) -> list[list[float]]:
    """The last hidden state of each response alone, times the head, by transformers' own class."""
    model = stir(load_plain(folder)).eval()
    weight = head(model.config.get_text_config().hidden_size)[0]
    found = []
    with torch.no_grad():
        for row in rows(folder):
            cast = [
                {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
                for inputs in row.sequences
            ]
            states = [model.base_model(**inputs, use_cache=False).last_hidden_state[0, -1] for inputs in cast]
            # A response of several sequences is scored at its end, which the last of them has.
            ends = torch.tensor([len(response.sequences) for response in row.example.responses]).cumsum(0) - 1
            found.append([float(states[end] @ weight) for end in ends])
    return found


@cache
def policy(folder: Path, layout: str) -> ScorePolicy:
    register_segment_attention()
    spec = spec_of(folder)
    model = stir(load_model(folder, spec.components, dtype=torch.float64))
    set_text_attention(model, 'sdpa' if layout == 'padded' else SEGMENT_ATTENTION)
    size = model.config.get_text_config().hidden_size
    collate = TokenCollator(spec, layout)
    return ScorePolicy(add_score_head(model, head(size)).eval(), collate, dtype=torch.float64)


def scores(folder: Path, collate: TokenCollator, examples: list[Example]) -> list[list[float]]:
    """The scores of each Example's responses."""
    with torch.no_grad():
        values = policy(folder, collate.layout)(collate(examples)).values.tolist()
    return [[values.pop(0) for _ in example.responses] for example in examples]


def same(found: list[list[float]], wanted: list[list[float]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        # Float32 inside of transformers' norms.
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(('family', 'layout'), FAMILY_LAYOUTS)
def test_scores_are_those_of_the_plain_body_alone(family: str, layout: str, tiny: Tiny) -> None:
    folder = tiny(family)
    examples, wanted = [row.example for row in rows(folder)], expected(folder)
    assert max(max(row) - min(row) for row in wanted) > 0.01, 'responses of one prompt differ'
    collate = TokenCollator(spec_of(folder), layout)
    same(scores(folder, collate, examples), wanted)
    same(scores(folder, collate, examples[::-1]), wanted[::-1])
    for number in (0, len(examples) - 1):
        same(scores(folder, collate, [examples[number]]), [wanted[number]])


@pytest.mark.parametrize(('family', 'layout'), FAMILY_LAYOUTS)
def test_the_pad_token_may_end_answers_and_dummies_are_not_read(family: str, layout: str, tiny: Tiny) -> None:
    folder = tiny(family)
    spec = spec_of(folder, pad_is_eos=True)
    assert spec.pad_token_id == spec.tokenizer.eos_token_id
    texts = [number for number, row in enumerate(rows(folder, pad_is_eos=True)) if not row.has_media]
    examples = [rows(folder, pad_is_eos=True)[number].example for number in texts]
    kinds = ('image',) if spec.reads else ()
    collate = TokenCollator(spec, layout, dummy_kinds=kinds)
    assert bool(collate(examples).stats.get('images')) == bool(kinds)
    same(scores(folder, collate, examples), [expected(folder)[number] for number in texts])


@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_score_reads_the_other_response_and_each_reads_its_own_end(layout: str, tiny: Tiny) -> None:
    folder = tiny('llama')
    spec = spec_of(folder)
    row = next(row.example for row in rows(folder) if len(row.example.responses) > 1)
    first, second = row.responses[:2]
    pair = replace(row, responses=[first, second])
    changed = second.ids.clone()
    changed[-1] = next(token for token in ordinary(spec) if token != int(changed[-1]))
    other = replace(pair, responses=[first, replace(second, ids=changed)])
    collate = TokenCollator(spec, layout)
    [before], [after] = scores(folder, collate, [pair]), scores(folder, collate, [other])
    assert after[0] == pytest.approx(before[0], abs=1e-9) and abs(after[1] - before[1]) > 1e-3


def test_a_batch_of_nothing_still_goes_through_head_and_body(tiny: Tiny) -> None:
    folder = tiny('llama')
    module = policy(folder, 'packed')
    module.zero_grad()
    values = module(TokenCollator(spec_of(folder), 'packed')([])).values
    values[:0].sum().backward()
    assert values.shape == (1,) and module.model.score.weight.grad is not None
    assert not any(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)
    module.zero_grad()
