"""What was asked for is in force: frozen stays, trained moves, rates, adapters, checkpointing, precision, offload."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.sft import SFT
from align_anything.engines.optim import make_optimizer, parameter_groups
from align_anything.models.pretrained_model import load_model, set_text_attention, tune_model
from align_anything.models.structure import MEDIA_CODEC
from align_anything.models.trainable import FREEZABLE_COMPONENTS, component_of
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.local_engine import LocalEngine
from tests.harness.pairwise import first_of, in_tiers
from tests.invariants.families import CODED, IMAGE, TEXT, WIDER, WRITING, rows, state_of
from tests.invariants.runs import EPSILON, assembled, fork, settings, train, trainable, weights, zero_file
from tests.models.mixed import AUDIO

Stirred = Callable[[str], Path]
COMPONENTS = tuple(component for component in FREEZABLE_COMPONENTS if component not in ('audio_tower', 'generation'))
SHIPPED = Path(__file__).parents[2] / 'align_anything/configs/deepspeed'


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor], names: set[str]) -> bool:
    # As bytes: packed 4-bit weights dressed as bfloat16 may look like NaN.
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in names)


@pytest.mark.parametrize(
    ('family', 'component'),
    [
        *in_tiers(product(IMAGE, COMPONENTS), [*zip(IMAGE, cycle(COMPONENTS))]),
        # One component of each wider family in turn, the audio towers all.
        *zip(WIDER, cycle(COMPONENTS)),
        *((family, 'audio_tower') for family in WIDER if family in AUDIO),
        ('janus', 'generation'),
        *((family, 'vision_tower') for family in CODED),
    ],
)
def test_a_frozen_component_keeps_its_bits_and_the_others_move(family: str, component: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, singles, groups = rows(folder)
    register_segment_attention()
    model = load_model(folder, spec.components)
    layout = spec.layouts[-1]
    set_text_attention(model, 'sdpa' if layout == 'padded' else SEGMENT_ATTENTION)
    tune_model(model, spec.components, **{f'freeze_{component}': True})
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    optimized = parameter_groups(policy.named_parameters(), learning_rate=1e-3, weight_decay=0.1, rates={})
    engine = LocalEngine(policy.train(), make_optimizer('adamw_torch', optimized, betas=(0.9, 0.95), eps=1e-8))
    before = state_of(model)
    collate = TokenCollator(spec, layout)
    for step in range(2):
        engine.train_step([collate([row.example for row in singles[step : step + 5]])], SFT())
    after = state_of(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved <= trainable(model)
    assert {spec.component_of(name) for name in moved} == set(spec.components) - {component, MEDIA_CODEC}
    # A tower's last layers stand still where features are taken before them; nothing else does.
    still = trainable(model) - moved
    assert {spec.component_of(name) for name in still} <= {'vision_tower', 'audio_tower'}


def _asked(rank: int, folder: Path, family: str, zero: Path, changes: dict[str, Any], ranks: int, steps: int) -> Any:
    cfgs = settings(folder, family, zero, **changes)
    run = assembled(cfgs, family)
    before = weights(run)
    losses = train(run, folder, rank, ranks, steps)
    dtypes = {parameter.dtype for parameter in run.policy.model.parameters()}
    return losses, before, weights(run), trainable(run.policy.model), dtypes


def asked(
    folder: Path, family: str, zero: Path, changes: dict[str, Any], ranks: int = 1, steps: int = 2
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor], set[str], set[torch.dtype]]:
    """Losses, weights before and after, names of what trains, and types of the parameters of a short run."""
    return fork(_asked, ranks, folder, family, zero, changes, ranks, steps)[0]


@pytest.mark.parametrize(
    ('family', 'stage'),
    in_tiers(product(('llava', 'qwen2_5_vl'), (0, 2, 3)), [('qwen2_5_vl', 2), ('llava', 3)]),
)
def test_a_rate_of_zero_for_a_part_changes_nothing_there(
    family: str, stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    changes = {
        'lr_groups': '{vision_tower: 0.0, mm_proj: 0.001}',
        'freeze_mm_proj': True,
        'unfreeze_patterns': 'multi_modal_projector.linear_1|merger',
    }
    folder = stirred(family)
    spec, *_ = rows(folder)
    _, before, after, names, _ = asked(folder, family, zero_file(tmp_path, stage), changes, ranks=2)
    tower = {name for name in names if spec.component_of(name) == 'vision_tower'}
    assert tower and same_bits(before, after, tower)
    assert same_bits(before, after, set(before) - names)
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert {spec.component_of(name) for name in moved} == {'mm_proj', 'language_model'}
    # Adam moves each weight by about the rate in its first steps: 2 steps at 0.001 and at 0.002, clipping aside.
    for component, rate in (('mm_proj', 0.001), ('language_model', 0.002)):
        largest = max(float((after[n] - before[n]).abs().max()) for n in moved if spec.component_of(n) == component)
        assert 0.5 * rate < largest < 2.2 * rate, component


@pytest.mark.parametrize(
    ('family', 'stage'),
    in_tiers(product(WRITING, (0, 2, 3)), [('chameleon', 0), ('emu3', 2), ('janus', 3)]),
)
def test_the_codec_of_media_keeps_its_bits_and_all_else_moves(
    family: str, stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    """With decay, which moves also what has no gradient; a rank has no codes where another has some."""
    folder = stirred(family)
    spec, *_ = rows(folder)
    _, before, after, names, _ = asked(folder, family, zero_file(tmp_path, stage), {}, ranks=2)
    codec = {name for name in before if spec.component_of(name) == MEDIA_CODEC}
    assert codec and not codec & names and same_bits(before, after, codec)
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert {spec.component_of(name) for name in moved} == set(spec.components) - {MEDIA_CODEC}


@pytest.mark.parametrize(
    ('family', 'stage'),
    [
        ('qwen2_5_vl', 2),
        pytest.param('llava', 3, marks=pytest.mark.extended),
        pytest.param('llava', 2, marks=pytest.mark.extended),
        pytest.param('qwen2_5_vl', 3, marks=pytest.mark.extended),
        pytest.param('gemma3', 2, marks=pytest.mark.extended),
    ],
)
def test_checkpointing_under_adapters_and_zero_changes_no_gradient(
    family: str, stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    folder = stirred(family)
    changes = {'use_lora': True, 'r': 4, 'lora_dropout': 0, 'vision_lora': True}
    zero = zero_file(tmp_path, stage)
    losses, before, plain, names, _ = asked(folder, family, zero, changes, ranks=2)
    changes['gradient_checkpointing'] = True
    again, _, recomputed, _, _ = asked(folder, family, zero, changes, ranks=2)
    assert again == pytest.approx(losses, rel=1e-6)
    assert names and all('lora_' in name for name in names)
    assert same_bits(before, plain, set(before) - names), 'the base is bit-identical'
    for name in names:
        torch.testing.assert_close(recomputed[name], plain[name], atol=1e-6, rtol=1e-4, msg=name)
    spec, *_ = rows(folder)
    moved = {name for name in names if not torch.equal(before[name], plain[name])}
    assert {component_of(name, spec.components) for name in moved} == {'vision_tower', 'language_model'}
    assert any('lora_A' in name for name in moved) and any('lora_B' in name for name in moved)


@pytest.mark.parametrize(
    ('family', 'stage'), in_tiers(product(('qwen2', 'llava'), (0, 2, 3)), [('qwen2', 0), ('llava', 2), ('qwen2', 3)])
)
def test_quantised_base_stays_while_its_adapters_learn(
    family: str, stage: int, stirred: Stirred, tmp_path: Path
) -> None:
    pytest.importorskip('bitsandbytes')
    folder = stirred(family)
    changes = {'use_lora': True, 'r': 8, 'lora_dropout': 0, 'use_bnb': True, 'load_in_4bit': True}
    changes |= {'bf16': True, 'learning_rate': 0.02}
    ranks = 2 if family == 'llava' else 1

    def work(rank: int) -> Any:
        cfgs = settings(folder, family, zero_file(tmp_path, stage), **changes)
        run = assembled(cfgs, family)
        before = weights(run)
        micro_batches = [run.policy.collate([row.example for row in rows(folder)[1][rank : rank + 2]])]
        losses = [run.train_step(micro_batches, SFT()).loss for _ in range(8)]
        kinds = {type(parameter).__name__ for parameter in run.policy.model.parameters()}
        return losses, before, weights(run), trainable(run.policy.model), kinds

    losses, before, after, names, kinds = fork(work, ranks)[0]
    assert 'Params4bit' in kinds
    assert losses[-1] < 0.8 * losses[0]
    assert same_bits(before, after, set(before) - names)
    assert sum(not torch.equal(before[name], after[name]) for name in names) == len(names)


@pytest.mark.parametrize(
    ('bf16', 'stage'), in_tiers(product((True, False), (0, 2, 3)), [(True, 0), (False, 2), (True, 3)])
)
def test_the_precision_asked_for_is_in_force_and_masters_are_wide(
    stage: int, bf16: bool, stirred: Stirred, tmp_path: Path
) -> None:
    folder = stirred('llava')

    def work(rank: int) -> Any:
        cfgs = settings(folder, 'llava', zero_file(tmp_path, stage), bf16=bf16, learning_rate=4e-5, adam_epsilon=1e-8)
        run = assembled(cfgs, 'llava')
        before = weights(run)
        batch = run.policy.collate([row.example for row in rows(folder)[1][:3]])
        with torch.no_grad():
            values = run.score(batch).values
        for _ in range(20):
            run.train_step([batch], SFT())
        return {parameter.dtype for parameter in run.policy.model.parameters()}, values.dtype, before, weights(run)

    dtypes, scored, before, after = fork(work, 1)[0]
    assert dtypes == {torch.bfloat16 if bf16 else torch.float32} and scored == torch.float32
    # Weights from 0.02 to 0.06 lie 1.2e-4 to 2.4e-4 apart in bfloat16: a step of 4e-5 rounds to nothing, twenty times
    # over. A float32 master gathers up to 20 x 4e-5 = 8e-4.
    change = (after['model.language_model.layers.0.mlp.up_proj.weight'].double()
              - before['model.language_model.layers.0.mlp.up_proj.weight'].double())  # fmt: skip
    weight = before['model.language_model.layers.0.mlp.up_proj.weight'].abs()
    medium = (weight > 0.02) & (weight < 0.06)
    assert float((change[medium] != 0).float().mean()) > 0.9


@pytest.mark.parametrize(('stage', 'ranks'), in_tiers(product((2, 3), (1, 2)), [(2, 2), (3, 1)]))
def test_offloaded_states_with_torchs_adam_give_the_same_weights(
    stage: int, ranks: int, stirred: Stirred, tmp_path: Path
) -> None:
    """Also where the first or the last micro-batch of a step has no image, which offloading alone gets wrong."""
    folder = stirred('llava')
    changes = {'optimizer': 'adamw_torch'}
    losses, before, plain, names, _ = asked(folder, 'llava', zero_file(tmp_path, 0), changes, ranks=1, steps=3)
    shipped = SHIPPED / f'ds_z{stage}_offload_config.json'
    changes |= {'output_dir': tmp_path / 'out'}
    again, _, offloaded, _, _ = asked(folder, 'llava', shipped, changes, ranks=ranks, steps=3)
    assert again == pytest.approx(losses, rel=1e-5)
    assert sum(not torch.equal(before[name], plain[name]) for name in names) > len(names) / 2
    for name in names:
        error = float((offloaded[name] - plain[name]).abs().max())
        assert error < 2e-5, f'{name} is off by {error:.2g}'


@pytest.mark.parametrize('family', first_of([*TEXT[:1], 'llava', 'qwen2_5_vl'], 'llava'))
def test_a_step_without_images_moves_a_trainable_tower_alike_everywhere(
    family: str, stirred: Stirred, tmp_path: Path
) -> None:
    """Momentum and decay go on where the gradient is zero, however many ranks and whatever dummy media they bring."""
    folder = stirred(family)
    spec, singles, _ = rows(folder)
    with_images = [row.example for row in singles if row.has_media][:2] or [singles[0].example, singles[1].example]
    texts = [row.example for row in singles if not row.has_media][:2]

    def work(rank: int, ranks: int, stage: int) -> Any:
        run = assembled(settings(folder, family, zero_file(tmp_path, stage)), family)
        for examples in (with_images, texts, texts):
            own = examples if ranks == 1 else examples[rank : rank + 1]
            run.train_step([run.policy.collate([example]) for example in own], SFT())
        return weights(run)

    register_segment_attention()
    model = load_model(folder, spec.components)
    set_text_attention(model, SEGMENT_ATTENTION)
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32).train()
    optimized = parameter_groups(policy.named_parameters(), learning_rate=2e-3, weight_decay=0.1, rates={})
    adam = make_optimizer('adamw_torch', optimized, betas=(0.9, 0.95), eps=EPSILON)
    local = LocalEngine(policy, adam, max_grad_norm=1.0)
    for examples in (with_images, texts, texts):
        local.train_step([TokenCollator(spec, 'packed')(examples)], SFT())
    expected = state_of(model)
    for ranks, stage in ((1, 0), (1, 2), (1, 3), (2, 0), (2, 3)):
        found = fork(work, ranks, ranks, stage)[0]
        for name, wanted in expected.items():
            error = float((found[name] - wanted).abs().max())
            assert error < 2e-5, f'{ranks} ranks, stage {stage}: {name} is off by {error:.2g}'
