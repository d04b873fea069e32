"""Micro-batches that reach none of what trains: no media where only a tower or a projector learns, or no row at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.algorithms.sft import SFT
from align_anything.core.types import Example, Piece
from align_anything.engines.optim import make_optimizer, parameter_groups
from align_anything.models.pretrained_model import load_model
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.runs.assembly import parameter_rates
from align_anything.trainers.runs.token_models import tune
from tests.harness.local_engine import LocalEngine
from tests.harness.pairwise import covering, in_tiers
from tests.invariants.families import rows
from tests.invariants.runs import EPSILON, assembled, fork, settings, trainable, weights, zero_file

Stirred = Callable[[str], Path]
KNOWN = known_algorithms()
ALGORITHMS: dict[str, Algorithm] = {
    'sft': KNOWN['sft'](),
    'dpo': KNOWN['dpo'](sft_coeff=0.1),
    'kto': KNOWN['kto'](),
    'grpo': KNOWN['grpo'](entropy_coeff=0.1, ptx_coeff=0.0),
}
# The two micro-batches of an optimizer step: with media, without, or without a row. Of two ranks each has one.
STEPS = (
    ('text', 'text'),
    ('media', 'text'),
    ('text', 'media'),
    ('media', 'none'),
    ('text', 'none'),
    ('media', 'media'),
)
LANGUAGE = {'freeze_language_model': True}
# What trains alone, by family and settings.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    'projector': ('llava', {**LANGUAGE, 'freeze_vision_tower': True}),
    'tower': ('qwen2_5_vl', {**LANGUAGE, 'freeze_mm_proj': True}),
    'audio tower': ('qwen2_audio', {**LANGUAGE, 'freeze_mm_proj': True, 'freeze_audio_tower': False}),
    'tower and its rate': ('llava', {'lr_groups': '{vision_tower: 0.001, mm_proj: 0.003}'}),
    'adapters of the tower': ('llava', {'use_lora': True, 'r': 4, 'lora_dropout': 0}),
    'layers that look at images': (
        'mllama',
        {**LANGUAGE, 'freeze_vision_tower': True, 'freeze_mm_proj': True, 'unfreeze_patterns': 'cross_attn'},
    ),
}
DIMENSIONS = ([*TRAINED], (0, 1, 2, 3), (False, True), (1, 2))
FIRST = [
    ('projector', 2, False, 1),
    ('adapters of the tower', 1, True, 1),
    ('audio tower', 3, False, 1),
    ('layers that look at images', 0, True, 2),
]
CASES = [*FIRST, *covering(product(*DIMENSIONS), FIRST)]


def changes_of(trained: str, folder: Path) -> dict[str, Any]:
    changes = TRAINED[trained][1]
    if 'use_lora' not in changes:
        return changes
    spec, *_ = rows(folder)
    skeleton = load_model(folder, spec.components)
    names = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and spec.component_of(f'{name}.weight') == 'vision_tower'
    ]
    return {**changes, 'target_modules': f'[{", ".join(names)}]'}


def pair_of_answers(example: Example, seed: int) -> Example:
    """The row with a second answer, and all that the algorithms read of a unit."""
    generator = torch.Generator().manual_seed(seed)
    first = example.responses[0]
    pieces = [Piece(first.ids, first.weights), Piece(first.ids.flip(0), first.weights.flip(0))]
    for piece, advantage in zip(pieces, (1.0, -1.0), strict=True):
        units = int((piece.weights > 0).sum())
        noise = partial(torch.randn, units, generator=generator)
        old = 0.3 * noise() - 5.0
        piece.per_unit = {
            'old': old,
            'rollout': old + 0.1 * noise(),
            'reference': 0.3 * noise() - 5.0,
            'advantage': torch.full((units,), advantage),
        }
    unmatched = Piece(first.ids.clone(), first.weights.clone())
    unmatched.per_unit = {'reference': 0.3 * torch.randn(units, generator=generator) - 5.0}
    return replace(example, responses=pieces, unmatched=unmatched, meta={'desirable': [True, False]})


def steps_of(folder: Path) -> list[tuple[Algorithm, list[list[Example]]]]:
    """The algorithm and the micro-batches of each optimizer step."""
    _, singles, _ = rows(folder)
    plain = [row for row in singles if len(row.example.prompt.weights) and not row.example.prompt.weights.any()]
    plain = [row for row in plain if not row.example.responses[0].media]
    kinds = {
        'media': [row.example for row in plain if row.has_media],
        'text': [row.example for row in plain if not row.has_media],
    }
    found = []
    for number, (algorithm, step) in enumerate(product(ALGORITHMS.values(), STEPS)):
        found.append(
            (
                algorithm,
                [
                    [] if kind == 'none' else [pair_of_answers(kinds[kind][number % len(kinds[kind])], number)]
                    for kind in step
                ],
            )
        )
    return found


def train(rank: int, ranks: int, folder: Path, family: str, zero: Path, changes: dict[str, Any]) -> Any:
    run = assembled(settings(folder, family, zero, **changes), family)
    before, losses = weights(run), []
    for algorithm, micro_batches in steps_of(folder):
        own = micro_batches if ranks == 1 else micro_batches[rank : rank + 1]
        result = run.train_step([run.policy.collate(examples) for examples in own], algorithm)
        assert result.applied
        losses.append(result.loss)
    return losses, before, weights(run), trainable(run.policy.model)


def oracle(
    folder: Path, family: str, zero: Path, changes: dict[str, Any], before: dict[str, Tensor]
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and last weights of a plain loop without dummy media, which sees all rows of a step in one batch."""
    cfgs = settings(folder, family, zero, **{**changes, 'gradient_checkpointing': False})
    spec, *_ = rows(folder)
    model = tune(cfgs, spec, load_model(folder, spec.components), SFT())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32).train()
    rates = {f'model.{name}': rate for name, rate in parameter_rates(cfgs, spec, model).items()}
    optimized = parameter_groups(policy.named_parameters(), learning_rate=0.002, weight_decay=0.1, rates=rates)
    adam = make_optimizer('adamw_torch', optimized, betas=(0.9, 0.95), eps=EPSILON)
    engine = LocalEngine(policy, adam, max_grad_norm=1.0)
    losses = [
        engine.train_step([policy.collate([example for micro in step for example in micro])], algorithm).loss
        for algorithm, step in steps_of(folder)
    ]
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(('trained', 'stage', 'checkpointing', 'ranks'), in_tiers(CASES, FIRST))
def test_what_is_reached_by_some_micro_batches_only_trains_as_in_one_batch(
    trained: str, stage: int, checkpointing: bool, ranks: int, stirred: Stirred, tmp_path: Path
) -> None:
    family = TRAINED[trained][0]
    folder = stirred(family)
    changes = {**changes_of(trained, folder), 'gradient_checkpointing': checkpointing}
    zero = zero_file(tmp_path, stage)
    losses, before, after, names = fork(train, ranks, ranks, folder, family, zero, changes)[0]
    expected_losses, expected = oracle(folder, family, zero, changes, before)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert moved and all(torch.equal(before[name], after[name]) for name in set(after) - names)
    for name in names:
        error = float((after[name] - expected[name]).abs().max())
        assert error < 5e-5, f'{name} is off by {error:.2g}'
