"""ZeRO 0, 2 and 3 on one and two ranks end in the weights of a plain loop over the same rows, and export them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from align_anything.algorithms.sft import SFT
from align_anything.core.parameters import is_partitioned
from align_anything.core.types import Batch
from align_anything.engines.deepspeed_config import build_config, needs_every_parameter
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.optim import complete_gradients
from align_anything.models.checkpoint import stored_keys
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.models.structure import MEDIA_CODEC
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.pairwise import covering, in_tiers
from tests.invariants.families import (
    CODED,
    IMAGE,
    LAYOUTS,
    MEDIA,
    TEXT,
    WIDER,
    accumulate_gradients,
    family_of,
    freeze,
    load_plain,
    media_conversations,
    reference_units,
    rows,
    schedule,
    state_of,
)
from tests.invariants.runs import fork
from tests.models.samples import load

Stirred = Callable[[str], Path]
LEARNING_RATE, MOMENTUM = 0.2, 0.9
# Families that share a world: starting one takes longer than training in it.
CROWDS = tuple((WIDER + CODED)[start : start + 4] for start in range(0, len(WIDER + CODED), 4))
# Families whose checkpoints name or cut weights otherwise than their models in memory.
RENAMED = ('llava', 'qwen2_vl', 'gemma3', 'qwen3_moe')
TRAINED_AT = {3: TEXT + IMAGE, 2: IMAGE, 0: RENAMED}
# What `make test` runs of those: what tells families apart here is how they name, cut and call their weights.
FIRST = [
    *((family, 3) for family in ('llama', 'opt', 'gemma3_text', 'granite')),
    *zip(RENAMED, (3, 3, 2, 3), strict=True),
    ('qwen2_5_vl', 2),
    ('idefics3', 3),
]
# Family, ranks, stage, layout and frozen component.
CUTS = [
    (family, ranks, stage, layout, frozen)
    for family, ranks, stage in product(('llava', 'qwen2_5_vl'), (1, 2), (0, 2, 3))
    for layout, frozen in (*product(LAYOUTS, (None,)), ('shared_prefix', 'vision_tower'))
]


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """Plain SGD: unlike Adam it neither hides the scale of a gradient nor blows up its rounding."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trainable, lr=LEARNING_RATE, momentum=MOMENTUM)


@cache
def oracle(folder: Path, frozen: str | None = None) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, first and last weights of a float64 loop that sees one row at a time."""
    spec, *_ = rows(folder)
    model = freeze(load_plain(folder), spec, frozen).train()
    before = state_of(model)
    optimizer = optimizer_of(model)
    losses = []
    for step in schedule(folder):
        optimizer.zero_grad()
        losses.append(accumulate_gradients(model, [row for rank in step for micro in rank for row in micro]))
        # Momentum goes on where a step has no use for a parameter.
        complete_gradients(model.parameters())
        optimizer.step()
    return losses, before, state_of(model)


def config_of(stage: int, ranks: int) -> dict[str, Any]:
    # Threshold 0: a tiny model would otherwise stay whole on every rank.
    zero = {'stage': stage, 'stage3_param_persistence_threshold': 0} if stage == 3 else {'stage': stage}
    return build_config(
        {'zero_optimization': zero}, micro_batch=2, accumulation=2, world_size=ranks, precision='fp32',
        max_grad_norm=0.0, optimizer='adamw_torch',
    )  # fmt: skip


def train(
    rank: int, folder: Path, ranks: int, stage: int, layout: str, frozen: str | None, out: Path | None
) -> tuple[list[float], dict[str, Tensor] | None, Tensor]:
    """Trains as a run does: partitioned while loading under ZeRO-3, dummy media only where the engine needs them.

    Returns losses, the last weights and the live scores of a row; writes the model to `out` as a run does.
    """
    spec, *_ = rows(folder)
    config = config_of(stage, ranks)
    partitioning = HfDeepSpeedConfig(config) if stage == 3 else None
    model = load_model(folder, spec.components, dtype=torch.float32)
    del partitioning
    assert any(map(is_partitioned, model.parameters())) == (stage == 3)
    register_segment_attention()
    set_text_attention(model, 'sdpa' if layout == 'padded' else SEGMENT_ATTENTION)
    freeze(model, spec, frozen)
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    engine = DeepSpeedEngine(
        policy, config, optimizer_of(policy), lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
    )
    every = needs_every_parameter(config, ranks)
    collate = TokenCollator(spec, layout, dummy_kinds=MEDIA.get(family_of(folder), ()) if every else ())
    losses = []
    for step in schedule(folder):
        own: list[Batch] = []
        for number, micros in enumerate(step):
            if ranks == 1 or number == rank:
                own += [collate([row.example for row in micro]) for micro in micros]
        losses.append(engine.train_step(own, SFT()).loss)
    engine.engine.eval()
    with torch.no_grad():
        scores = engine.score(collate([rows(folder)[1][0].example])).values
    state = engine.full_state_dict(model)
    if out is not None and rank == 0:
        whole = state if stage == 3 else None
        export_model(model, whole, out, tokenizer=spec.tokenizer, processor=spec.processor)
    return losses, state, scores


def check(
    folder: Path, ranks: int, stage: int, layout: str, frozen: str | None = None, out: Path | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    oracle(folder, frozen)
    return compare(folder, fork(train, ranks, folder, ranks, stage, layout, frozen, out), frozen)


def compare(folder: Path, results: list[Any], frozen: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
    spec, *_ = rows(folder)
    losses, before, after = oracle(folder, frozen)
    for found, _, _ in results:
        assert found == pytest.approx(losses, rel=1e-5)
    _, state, scores = results[0]
    moved = set()
    for name, wanted in after.items():
        change, expected = state[name].double() - before[name], wanted - before[name]
        if spec.component_of(name) == frozen:
            assert torch.equal(state[name], before[name].float()), f'{name} is frozen'
            continue
        largest = float(expected.abs().max())
        error = float((change - expected).abs().max())
        assert error <= 2e-3 * largest + 1e-6, f'{name}: moved by {largest:.2g}, off by {error:.2g}'
        moved |= {spec.component_of(name)} if largest > 1e-4 else set()
    assert moved == set(spec.components) - {frozen, MEDIA_CODEC}
    return state, scores


def check_reload(source: Path, out: Path, state: dict[str, Tensor], scores: Tensor) -> None:
    """Plain transformers finds in `out` the weights, names and processor that there should be."""
    spec, singles, _ = rows(source)
    assert stored_keys(out) == stored_keys(source)
    reloaded = load_plain(out, torch.float32).eval()
    for name, parameter in reloaded.named_parameters():
        assert torch.equal(parameter, state[name]), name
    with torch.no_grad():
        again, _ = reference_units(reloaded, singles[0])
    torch.testing.assert_close(again.float(), scores, atol=2e-5, rtol=0)
    again = load(out)
    assert again.renderer.template == spec.renderer.template
    assert again.tokenizer('a red dog, 12 times').input_ids == spec.tokenizer('a red dog, 12 times').input_ids
    if spec.reads:
        conversation = media_conversations(family_of(source))[1]
        one, other = (each.encode(conversation, 'last').prompt for each in (spec, again))
        assert torch.equal(one.ids, other.ids) and one.media.keys() == other.media.keys()
        assert all(torch.equal(one.media[name], other.media[name]) for name in one.media)


@pytest.mark.parametrize(
    ('family', 'stage'),
    in_tiers(
        [(family, stage) for stage, families in TRAINED_AT.items() for family in families],
        FIRST,
    ),
)
def test_two_ranks_with_different_rows_train_as_one_loop_and_export(
    family: str, stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    folder = stirred(family)
    state, scores = check(folder, 2, stage, 'packed', out=tmp_path / 'out')
    check_reload(folder, tmp_path / 'out', state, scores)


def _train_several(rank: int, folders: list[Path], layouts: list[str], stage: int, out: Path) -> list[Any]:
    return [
        train(rank, folder, 2, stage, layout, None, out / family_of(folder))
        for folder, layout in zip(folders, layouts, strict=True)
    ]


@pytest.mark.parametrize(
    ('families', 'stage'),
    # The last ones see and hear, with experts and with encoders of other families.
    in_tiers(product(CROWDS, (0, 2, 3)), [(crowd, 3) for crowd in CROWDS[-2:]]),
    ids=lambda value: value if isinstance(value, int) else '-'.join(value),
)
def test_ranks_with_other_kinds_of_media_train_as_one_loop_and_export(
    families: tuple[str, ...], stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    folders = [stirred(family) for family in families]
    # Made before forking, for both ranks.
    layouts = [rows(folder)[0].layouts[-1 if stage == 3 else 0] for folder in folders]
    results = fork(_train_several, 2, folders, layouts, stage, tmp_path)
    for folder, found in zip(folders, zip(*results, strict=True), strict=True):
        state, scores = compare(folder, found)
        check_reload(folder, tmp_path / family_of(folder), state, scores)


@pytest.mark.parametrize(('family', 'ranks', 'stage', 'layout', 'frozen'), in_tiers(CUTS, covering(CUTS)))
def test_every_stage_cut_and_layout_train_as_one_loop(
    family: str, ranks: int, stage: int, layout: str, frozen: str | None, stirred: Stirred
) -> None:
    check(stirred(family), ranks, stage, layout, frozen)
