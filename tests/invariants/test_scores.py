"""A score is the plain model's log-probability, whatever stands around the sample and however it is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align_anything.core.types import Example
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.pairwise import in_tiers
from tests.invariants.families import (
    FAMILY_LAYOUTS,
    MEDIA,
    PADDED_ONLY,
    WIDER,
    double_experts,
    family_of,
    ordinary,
    precision,
    reference_scores,
    rows,
)
from tests.models.mixed import AUDIO, sound
from tests.models.samples import assistant, user

Stirred = Callable[[str], Path]
# Each family in the layout that has the others' properties too, where it declares it.
LAST = [*dict(FAMILY_LAYOUTS).items()]
# Both sides run in the same type, but norms, rotations and routers of transformers round to float32 inside.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 5e-5}
# Calls of one shape round alike.
UNCHANGED = {torch.float64: 1e-9, torch.float32: 1e-5}


@cache
def policy(folder: Path) -> TokenPolicy:
    spec, *_ = rows(folder)
    register_segment_attention()
    dtype = precision(family_of(folder))
    model = double_experts(load_model(folder, spec.components, dtype=dtype)).eval()
    return TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=dtype)


@torch.no_grad()
def scores(folder: Path, collate: TokenCollator, examples: Sequence[Example]) -> list[Tensor]:
    """Scores of each example."""
    module = policy(folder)
    set_text_attention(module.model, 'sdpa' if collate.layout == 'padded' else SEGMENT_ATTENTION)
    batch = collate(examples)
    values = module(batch).values
    assert values.dtype == precision(family_of(folder))
    owner = batch.examples_of_responses[batch.segments]
    return [values[owner == number] for number in range(len(examples))]


def same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerances: dict[torch.dtype, float] = TOLERANCE) -> None:
    assert [len(item) for item in found] == [len(item) for item in expected]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        allowed, wanted = tolerances[one.dtype], other.to(one.dtype)
        torch.testing.assert_close(one, wanted, atol=allowed, rtol=0, msg=lambda text, n=number: f'row {n}: {text}')


@pytest.mark.parametrize(('family', 'layout'), FAMILY_LAYOUTS)
def test_scores_are_the_plain_models_for_any_neighbours(family: str, layout: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    assert layout in spec.layouts
    expected, expected_groups = reference_scores(folder)
    examples, several = [row.example for row in singles], [row.example for row in groups]
    collate = TokenCollator(spec, layout)
    same(scores(folder, collate, examples), expected)
    same(scores(folder, collate, examples[::-1]), expected[::-1])
    same([scores(folder, collate, [example])[0] for example in examples], expected)
    # Several responses share their prompt where the layout can; one that brings its own image stands among them.
    same(scores(folder, collate, several), expected_groups)
    same(scores(folder, collate, [*several[::-1], examples[0]]), [*expected_groups[::-1], expected[0]])


@pytest.mark.parametrize(('family', 'layout'), in_tiers(FAMILY_LAYOUTS, LAST))
def test_no_score_depends_on_a_later_token_or_a_neighbour(family: str, layout: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    collate = TokenCollator(spec, layout)
    examples = [*(row.example for row in singles[:4]), *(row.example for row in groups[:2])]
    before = scores(folder, collate, examples)
    plain = ordinary(spec)

    def other_end(example: Example) -> Example:
        responses = []
        for piece in example.responses:
            ids = piece.ids.clone()
            ids[-1] = plain[3] if int(ids[-1]) != plain[3] else plain[4]
            responses.append(replace(piece, ids=ids))
        return replace(example, responses=responses)

    after = scores(folder, collate, [other_end(example) for example in examples])
    moved = 0
    for example, old, new in zip(examples, before, after, strict=True):
        lengths = [piece.units for piece in example.responses]
        lengths[0] = len(old) - sum(lengths[1:])
        offset = 0
        for piece, length in zip(example.responses, lengths, strict=True):
            ends_scored = bool(piece.weights[-1] > 0)
            inner = slice(offset, offset + length - ends_scored)
            same([new[inner]], [old[inner]], UNCHANGED)
            moved += ends_scored and abs(float(new[offset + length - 1] - old[offset + length - 1])) > 1e-4
            offset += length
    assert moved >= 4, 'the changed tokens have other scores themselves'

    for number in range(len(examples)):
        neighbours = [item if place == number else other_end(item) for place, item in enumerate(examples)]
        same([scores(folder, collate, neighbours)[number]], [before[number]], UNCHANGED)


@pytest.mark.parametrize('family', [family for family in WIDER if family in AUDIO])
def test_short_audio_sounds_the_same_beside_a_longer_clip(family: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, *_ = rows(folder)
    short, long = (
        spec.encode([user(sound(seconds), 'What is it?'), assistant('A tone of some height.')])
        for seconds in (0.3, 1.4)
    )
    collate = TokenCollator(spec, spec.layouts[-1])
    alone = scores(folder, collate, [short])
    same(scores(folder, collate, [short, long])[:1], alone)
    same(scores(folder, collate, [long, short])[1:], alone)


@pytest.mark.parametrize(('family', 'layout'), in_tiers(FAMILY_LAYOUTS, LAST))
def test_pad_may_be_the_end_token_and_dummy_media_change_nothing(family: str, layout: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, _ = rows(folder, pad_is_eos=True)
    assert spec.pad_token_id == spec.tokenizer.eos_token_id
    expected, _ = reference_scores(folder)
    examples = [row.example for row in singles]
    same(scores(folder, TokenCollator(spec, layout), examples), expected)
    kinds = MEDIA.get(family, ())
    texts = [number for number, row in enumerate(singles) if not row.has_media]
    collate = TokenCollator(spec, layout, dummy_kinds=kinds)
    stats = collate([examples[number] for number in texts]).stats
    assert len(texts) >= 2 and {name: stats[name] for name in stats if name[:-1] in ('image', 'video', 'audio')} == {
        f'{kind}s': 1 for kind in kinds
    }
    same(scores(folder, collate, [examples[number] for number in texts]), [expected[number] for number in texts])
    same(scores(folder, collate, [examples[texts[0]]]), [expected[texts[0]]])
    assert scores(folder, collate, []) == []


@pytest.mark.parametrize('family', dict.fromkeys(family for family, _ in FAMILY_LAYOUTS if family not in PADDED_ONLY))
def test_dropping_the_attention_plan_would_be_noticed(family: str, stirred: Stirred) -> None:
    """The comparison is sharp: one long row under plain causal attention is far off."""
    folder = stirred(family)
    spec, singles, _ = rows(folder)
    expected, _ = reference_scores(folder)
    module = policy(folder)
    set_text_attention(module.model, 'sdpa')
    batch = TokenCollator(spec, 'packed')([row.example for row in singles])
    arguments = batch.inputs.arguments
    del arguments['segments']
    length = arguments['input_ids'].shape[1]
    arguments['attention_mask'] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        error = (module(batch).values - torch.cat(expected)).abs().max()
    assert error > 1e-2
