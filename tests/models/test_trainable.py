"""What was asked to be frozen is frozen, what was asked to train trains, and the table says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from align_anything.configs.schema import BnbCfgs
from align_anything.core.errors import ModelError
from align_anything.models.checkpointing import Checkpointing, choose_layers, share_recomputed, stacks_of
from align_anything.models.pretrained_model import load_model, load_spec, tune_model
from align_anything.models.trainable import (
    ComponentRow,
    component_of,
    enable_gradient_checkpointing,
    freeze_components,
    learning_rates,
    parameter_table,
    plain_name,
    render_table,
    require_trainable,
)
from tests.models.common import IMAGE_FAMILIES, TEXT_FAMILIES, lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]
# Module names of transformers' classes, written down here apart from the code that finds them.
TOWERS = {'qwen2_vl': 'model.visual.', 'qwen2_5_vl': 'model.visual.', 'qwen3_vl': 'model.visual.'}
PROJECTORS = {
    'qwen2_vl': ('model.visual.merger.',),
    'qwen2_5_vl': ('model.visual.merger.',),
    'qwen3_vl': ('model.visual.merger.', 'model.visual.deepstack_merger_list.'),
    'llava_next': ('model.multi_modal_projector.', 'model.image_newline'),
    'idefics3': ('model.connector.',),
}


def _expected_component(family: str, name: str) -> str:
    tower = 'model.vision_model.' if family == 'idefics3' else TOWERS.get(family, 'model.vision_tower.')
    if name.startswith(PROJECTORS.get(family, ('model.multi_modal_projector.',))):
        return 'mm_proj'
    return 'vision_tower' if name.startswith(tower) else 'language_model'


@pytest.mark.parametrize('component', ['vision_tower', 'mm_proj', 'language_model'])
@pytest.mark.parametrize('family', [*TEXT_FAMILIES, *IMAGE_FAMILIES, 'granite', 'idefics3'])
def test_freezing_a_component_freezes_it_and_nothing_else(family: str, component: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    model = load_model(tiny(family), spec.components)
    freeze_components(model, spec.components, **{component: True})
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {name for name, _ in model.named_parameters() if _expected_component(family, name) == component}
    assert frozen == expected
    assert bool(frozen) == (component == 'language_model' or 'image' in spec.reads)


def test_patterns_unfreeze_inside_frozen_components(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    patterns = [r'vision_tower.*\.layers\.1\.', r'^lm_head\.']
    freeze_components(
        model, spec.components, vision_tower=True, mm_proj=True, language_model=True, unfreeze_patterns=patterns
    )
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {
        name
        for name, _ in model.named_parameters()
        if name == 'lm_head.weight' or ('vision_tower' in name and '.layers.1.' in name)
    }
    assert len(trains) > 2


@pytest.mark.parametrize(
    ('pattern', 'message'), [('visoin_tower', 'found in no parameter name'), ('layers.(', 'not a regular expression')]
)
def test_bad_unfreeze_patterns(pattern: str, message: str, tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    with pytest.raises(ModelError, match=message):
        freeze_components(model, spec.components, unfreeze_patterns=[pattern])


def test_nothing_to_train_is_an_error(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    everything = {'freeze_vision_tower': True, 'freeze_mm_proj': True, 'freeze_language_model': True}
    with pytest.raises(ModelError, match='nothing trains'):
        tune_model(model, spec.components, **everything)
    require_trainable(tune_model(model, spec.components, **everything, unfreeze_patterns=['lm_head']))


@pytest.mark.parametrize(
    ('name', 'plain'),
    [
        ('model.layers.0.q_proj.weight', 'model.layers.0.q_proj.weight'),
        ('base_model.model.model.layers.0.q_proj.base_layer.weight', 'model.layers.0.q_proj.weight'),
        ('base_model.model.model.layers.0.q_proj.lora_A.default.weight', 'model.layers.0.q_proj.weight'),
        ('base_model.model.model.q_proj.lora_magnitude_vector.default.weight', 'model.q_proj.weight'),
        ('base_model.model.model.proj.modules_to_save.default.linear_1.weight', 'model.proj.linear_1.weight'),
        ('base_model.model.model.proj.original_module.linear_1.weight', 'model.proj.linear_1.weight'),
    ],
)
def test_names_under_adapters(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert component_of(name, {'mm_proj': ['model.proj'], 'language_model': ['model']}) == (
        'mm_proj' if '.proj.' in name else 'language_model'
    )


def test_learning_rates_by_part_and_by_pattern(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    freeze_components(model, spec.components, vision_tower=True)
    groups = {r'multi_modal_projector\.linear_2': 3e-3, 'mm_proj': 2e-3}
    rates = learning_rates(model, spec.components, 1e-3, groups)
    assert set(rates) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, rate in rates.items():
        expected = 1e-3 if 'projector' not in name else 3e-3 if 'linear_2' in name else 2e-3
        assert rate == expected, name
    with pytest.raises(ModelError, match="'mm_porj'.*Did you mean 'mm_proj'"):
        learning_rates(model, spec.components, 1e-3, {'mm_porj': 1.0})
    # A component that is frozen has no parameter to give the rate to.
    with pytest.raises(ModelError, match="'vision_tower'"):
        learning_rates(model, spec.components, 1e-3, {'vision_tower': 1.0})


def test_the_table_counts_components_types_and_rates(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components, dtype=torch.bfloat16)
    freeze_components(model, spec.components, vision_tower=True)
    rows = parameter_table(model, spec.components, learning_rates(model, spec.components, 1e-3, {'lm_head': 5e-4}))
    assert [row.component for row in rows] == ['vision_tower', 'mm_proj', 'language_model']
    tower, projector, language = rows
    # Two linear layers with bias, 32 -> 64 and 64 -> 64: 32*64 + 64 + 64*64 + 64 = 6272.
    assert projector == ComponentRow('mm_proj', 6272, 6272, ('bfloat16',), (1e-3,))
    assert tower.trainable == 0 and tower.rates == ()
    assert language.rates == (5e-4, 1e-3)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.parameters for row in rows) == total
    console = Console(record=True, width=120)
    console.print(render_table(rows))
    text = console.export_text()
    assert f'{total:,}' in text and '6,272' in text and '0.0005, 0.001' in text and 'bfloat16' in text


def test_the_table_counts_quantised_weights_in_full(tiny: Tiny) -> None:
    pytest.importorskip('bitsandbytes')
    spec = load_spec(tiny('qwen2'))
    plain = load_model(tiny('qwen2'), spec.components)
    size = sum(parameter.numel() for parameter in plain.parameters())
    model = tune_model(
        load_model(tiny('qwen2'), spec.components, bnb_cfgs=BnbCfgs(use_bnb=True)),
        spec.components,
        lora_cfgs=lora_cfgs(),
    )
    (row,) = parameter_table(model, spec.components, learning_rates(model, spec.components, 1e-3))
    assert row.parameters - row.trainable == size
    assert 'quantised' in row.dtypes


def test_the_table_counts_partitioned_weights_in_full(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    expected = parameter_table(model, spec.components, learning_rates(model, spec.components, 1e-3))
    for parameter in model.parameters():
        # What ZeRO-3 leaves behind on a parameter.
        parameter.ds_numel, parameter.data = parameter.numel(), torch.empty(0)
    assert parameter_table(model, spec.components, learning_rates(model, spec.components, 1e-3)) == expected


@pytest.mark.parametrize('family', ['qwen2', pytest.param('llava', marks=pytest.mark.extended)])
def test_chosen_layers_are_recomputed_and_their_inputs_offloaded(
    family: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(tiny(family))
    inputs = model_inputs(spec)
    packed: list[int] = []

    def recording(pin_memory: bool) -> torch.autograd.graph.saved_tensors_hooks:
        assert not pin_memory, 'there is nothing to pin for on a CPU'

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            packed.append(tensor.numel())
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    monkeypatch.setattr(torch.autograd.graph, 'save_on_cpu', recording)
    found = {}
    for how in (None, Checkpointing(every=2), Checkpointing(offload=True), Checkpointing(every=2, offload=True)):
        model = load_model(tiny(family), spec.components)
        if how is not None:
            enable_gradient_checkpointing(model, how)
        packed.clear()
        model.train()(**inputs, use_cache=False).logits.float().square().mean().backward()
        found[how] = {name: parameter.grad for name, parameter in model.named_parameters()}
        stacks = [len(layers) for layers in stacks_of(model)]
        assert len(stacks) == (0 if how is None else len(spec.components) - 1 if family == 'llava' else 1)
        chosen = 0 if how is None else sum(how.recomputed(layers) for layers in stacks)
        assert share_recomputed(model) == (chosen / sum(stacks) if stacks else 0.0)
        assert len(packed) == (chosen if how is not None and how.offload else 0)
    plain, *others = found.values()
    for other in others:
        for name, gradient in plain.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_layers_cannot_be_chosen_where_there_are_none() -> None:
    with pytest.raises(ModelError, match='gradient_checkpointing_every_n_layers: Linear computes all layers again'):
        choose_layers(torch.nn.Linear(2, 2), Checkpointing(every=2))


@pytest.mark.parametrize('with_lora', [False, True])
@pytest.mark.parametrize('family', ['qwen2', 'llava', 'qwen2_vl', 'gemma3'])
def test_gradient_checkpointing_changes_no_gradient(family: str, with_lora: bool, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    inputs = model_inputs(spec)
    gradients = []
    for checkpointing in (False, True):
        model = load_model(tiny(family), spec.components)
        cfgs = lora_cfgs(vision_lora='image' in spec.reads) if with_lora else None
        torch.manual_seed(0)
        model = tune_model(model, spec.components, freeze_mm_proj=not with_lora, lora_cfgs=cfgs)
        stir(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
        model.train()(**inputs, use_cache=False).logits.float().square().mean().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        )
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    received = [name for name, gradient in plain.items() if gradient is not None]
    assert len(received) > len(plain) / 2
    for name, gradient in plain.items():
        if gradient is None:
            assert checkpointed[name] is None, name
        else:
            torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
