"""A layout that computes something else on this model is found before the first step, and the run says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.integrations.sdpa_attention as plain_attention
from torch import Tensor

from align_anything.models.pretrained_model import load_model
from align_anything.policies.token import attention, selfcheck
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.plan import fit_attention
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.runs import assembly
from tests.harness.pairwise import in_tiers
from tests.harness.ranks import RanksError
from tests.invariants.families import CODED, FAMILY_LAYOUTS, IMAGE, MEDIA, TEXT, WIDER, rows
from tests.invariants.runs import assembled, fork, settings, train, zero_file

Stirred = Callable[[str], Path]


def causal_over_the_row(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Sees the neighbours in front of it."""
    groups = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups > 1)
    return out.transpose(1, 2).contiguous(), None


def sees_the_future(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Keeps neighbours apart, but looks ahead within a sequence."""
    parts = []
    for span in kwargs['segments'].spans if kwargs.get('segments') else [slice(0, query.shape[2])]:
        own = slice(span.start, span.stop)
        groups = query.shape[1] // key.shape[1]
        parts.append(
            F.scaled_dot_product_attention(query[:, :, own], key[:, :, own], value[:, :, own], enable_gqa=groups > 1)
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def refuses(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A form of attention that the kernels here do not know."""
    raise NotImplementedError('soft-capped scores')


def only_in_rows(wrong: Callable[..., Any]) -> Callable[..., Any]:
    """`wrong` for rows of several sequences, the true one elsewhere."""
    true = attention.segment_attention
    return lambda *args, **kwargs: (wrong if kwargs.get('segments') else true)(*args, **kwargs)


def _run(rank: int, folder: Path, family: str, zero: Path) -> tuple[str, list[str], list[float]]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    for module in (assembly, selfcheck):
        module.logger.addHandler(handler)
    run = assembled(settings(folder, family, zero), family)
    return run.policy.collate.layout, said, train(run, folder, rank, 1)


REASONS = {
    causal_over_the_row: "a neighbour's tokens change",
    sees_the_future: 'later token',
    refuses: 'soft-capped scores',
}


@pytest.mark.parametrize(
    ('family', 'wrong'),
    in_tiers(product(('llama', 'llava'), REASONS), [*zip(('llava', 'llama', 'llava'), REASONS, strict=True)]),
)
def test_a_wrong_layout_falls_back_to_padded_and_says_so(
    family: str,
    wrong: Callable[..., Any],
    stirred: Stirred,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, zero = stirred(family), zero_file(tmp_path, 0)
    rows(folder)
    layout, said, expected = fork(_run, 1, folder, family, zero)[0]
    assert layout != 'padded' and not any('falling back' in line for line in said)
    monkeypatch.setattr(attention, 'segment_attention', only_in_rows(wrong))
    layout, said, losses = fork(_run, 1, folder, family, zero)[0]
    assert layout == 'padded'
    assert any("falling back to 'padded'" in line and REASONS[wrong] in line for line in said), said
    assert any(line == 'layout: padded' for line in said)
    # What it then trains is right.
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_model_whose_attention_is_wrong_in_every_layout_does_not_train(
    stirred: Stirred, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_attention, 'sdpa_attention_forward', sees_the_future)
    with pytest.raises(RanksError, match="gives other scores than transformers' eager one"):
        fork(_run, 1, stirred('llama'), 'llama', zero_file(tmp_path, 0))


@pytest.mark.parametrize(
    ('family', 'dtype'),
    [
        # In float32, wider families have this test beside their others (tests/models/test_family_mixed.py).
        *(pytest.param(family, torch.float32, marks=pytest.mark.extended) for family in TEXT + IMAGE),
        # Where rounding is widest, for every family.
        *((family, torch.bfloat16) for family in TEXT + IMAGE + WIDER + CODED),
    ],
)
def test_no_right_layout_is_thrown_away(family: str, dtype: torch.dtype, stirred: Stirred) -> None:
    """The check allows for rounding: every family keeps the layouts it declares, in half precision too."""
    folder = stirred(family)
    spec, *_ = rows(folder)
    assert spec.layouts == tuple(layout for name, layout in FAMILY_LAYOUTS if name == family)
    model = load_model(folder, spec.components, dtype=dtype).eval()
    for layout in spec.layouts:
        policy = TokenPolicy(model, TokenCollator(spec, layout, MEDIA.get(family, ())), dtype=dtype)
        fit_attention(model, policy.collate)
        policy.check(policy, torch.device('cpu'))
        assert policy.collate.layout == layout
