"""Adapters sit on the layers that were asked for and nowhere else; quantised bases train under them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from align_anything.configs.schema import BnbCfgs
from align_anything.core.errors import ModelError
from align_anything.models import quantization
from align_anything.models.adapter import find_adapter, put_on
from align_anything.models.export import merged_state
from align_anything.models.lora import apply_lora, target_modules
from align_anything.models.pretrained_model import load_model, load_spec, tune_model
from tests.models.common import IMAGE_FAMILIES, TEXT_FAMILIES, logits, lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]


def _linear(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _adapted(model: nn.Module) -> set[str]:
    return {
        name.removeprefix('base_model.model.')
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@pytest.mark.parametrize('vision', [False, True])
@pytest.mark.parametrize('family', [*TEXT_FAMILIES, *IMAGE_FAMILIES, 'granite', 'idefics3'])
def test_auto_is_every_linear_layer_of_the_asked_components(family: str, vision: bool, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    model = load_model(tiny(family), spec.components)
    components = {'language_model', 'vision_tower'} if vision else {'language_model'}
    expected = {
        name for name in _linear(model) if name != 'lm_head' and spec.component_of(f'{name}.weight') in components
    }
    assert any('self_attn.q_proj' in name for name in expected)
    adapted = tune_model(model, spec.components, lora_cfgs=lora_cfgs(vision_lora=vision))
    assert _adapted(adapted) == expected
    trains = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trains and all('.lora_' in name for name in trains)


def test_short_names_do_not_reach_into_the_tower(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    assert any('vision_tower' in name and name.endswith('q_proj') for name in _linear(model))
    hit = target_modules(model, ['q_proj', 'self_attn.v_proj'], spec.components)
    assert hit == [
        f'model.language_model.layers.{layer}.self_attn.{name}' for layer in (0, 1) for name in ('q_proj', 'v_proj')
    ]
    with_tower = target_modules(model, ['q_proj'], spec.components, vision_lora=True)
    assert sum('vision_tower' in name for name in with_tower) == 2 and len(with_tower) == 4
    full = 'model.multi_modal_projector.linear_1'
    assert target_modules(model, [full], spec.components) == [full]


@pytest.mark.parametrize('dora', [False, True])
def test_the_linear_layers_of_gpt2_get_adapters_that_reload(dora: bool, tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('gpt2'))
    model = load_model(tiny('gpt2'), spec.components)
    hit = target_modules(model, ['c_attn', 'attn.c_proj'], spec.components)
    assert hit == [f'transformer.h.{layer}.attn.{name}' for layer in (0, 1) for name in ('c_attn', 'c_proj')]
    adapted = tune_model(model, spec.components, lora_cfgs=lora_cfgs(target_modules=['c_attn'], use_dora=dora))
    stir(adapted)
    inputs = model_inputs(spec)
    expected = logits(adapted, inputs)
    adapted.save_pretrained(tmp_path)
    merged, plain = (load_model(tiny('gpt2'), spec.components) for _ in range(2))
    assert not torch.allclose(logits(plain, inputs), expected)
    merged.load_state_dict(merged_state(adapted, adapted.state_dict()), strict=False)
    assert torch.allclose(logits(merged, inputs), expected, atol=1e-5)
    assert torch.allclose(logits(put_on(plain, find_adapter(tmp_path)), inputs), expected, atol=1e-5)


def test_all_linear_is_every_layer_of_the_whole_model_but_the_output(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    expected = [name for name in _linear(model) if name != 'lm_head']
    assert any('vision_tower' in name for name in expected) and any('projector' in name for name in expected)
    for targets in ('all-linear', ['all-linear']):
        assert set(target_modules(model, targets, spec.components)) == set(expected)
    left = target_modules(model, 'all-linear', spec.components, exclude=['multi_modal_projector'])
    assert set(left) == {name for name in expected if 'projector' not in name}


@pytest.mark.parametrize(
    'pattern', [r'.*language_model.*\.(q|v)_proj', r'.*\.layers\.1\..*fc[12]', r'.*projector\.linear_.']
)
def test_a_regular_expression_matches_full_names_as_in_peft(tiny: Tiny, pattern: str) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    found = target_modules(model, [pattern], spec.components)
    peft = get_peft_model(load_model(tiny('llava'), spec.components), LoraConfig(target_modules=pattern))
    assert found and set(found) == _adapted(peft)


def test_expressions_that_are_none_or_match_nothing(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    with pytest.raises(ModelError, match='lora_cfgs.target_modules .* is not a regular expression'):
        target_modules(model, ['.*(q_proj'], spec.components)
    with pytest.raises(ModelError, match=r"is called '\.\*k_porj'"):
        target_modules(model, ['.*k_porj'], spec.components)


def test_names_that_hit_nothing(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    with pytest.raises(ModelError, match="'q_porj'. Did you mean 'q_proj'"):
        target_modules(model, ['q_proj', 'q_porj'], spec.components)
    with pytest.raises(ModelError, match="modules_to_save: no module is called 'lm_haed'. Did you mean 'lm_head'"):
        apply_lora(model, lora_cfgs(modules_to_save=['lm_haed']), spec.components)


def test_unfreezing_beside_adapters_is_refused(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    with pytest.raises(ModelError, match='modules_to_save'):
        tune_model(model, spec.components, unfreeze_patterns=['multi_modal_projector'], lora_cfgs=lora_cfgs())


def test_modules_to_save_train_whole_and_get_no_adapter(tiny: Tiny) -> None:
    spec = load_spec(tiny('llava'))
    model = load_model(tiny('llava'), spec.components)
    cfgs = lora_cfgs(modules_to_save=['multi_modal_projector'], target_modules=['q_proj'])
    adapted = tune_model(model, spec.components, freeze_mm_proj=True, lora_cfgs=cfgs)
    trains = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    whole = {name for name in trains if '.lora_' not in name}
    assert len(whole) == 4 and all('multi_modal_projector.modules_to_save.default.linear_' in name for name in whole)


def test_saved_modules_with_tied_weights_stay_tied(tiny: Tiny) -> None:
    spec = load_spec(tiny('gemma3_text'))
    model = load_model(tiny('gemma3_text'), spec.components)
    assert model.config.tie_word_embeddings
    adapted = tune_model(model, spec.components, lora_cfgs=lora_cfgs(modules_to_save=['embed_tokens']))
    plain = adapted.get_base_model()
    assert plain.get_input_embeddings().weight.data_ptr() == plain.get_output_embeddings().weight.data_ptr()
    assert plain.get_output_embeddings().weight.requires_grad


def test_a_head_that_would_no_longer_be_tied_is_refused(tiny: Tiny) -> None:
    spec = load_spec(tiny('gpt2'))
    model = load_model(tiny('gpt2'), spec.components)
    with pytest.raises(ModelError, match='wte of this model share a weight with its head'):
        tune_model(model, spec.components, lora_cfgs=lora_cfgs(modules_to_save=['wte']))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_adapters_have_the_type_of_the_run(dtype: torch.dtype, tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components, dtype=dtype)
    adapted = tune_model(model, spec.components, lora_cfgs=lora_cfgs(use_dora=True), dtype=dtype)
    assert {parameter.dtype for parameter in adapted.parameters()} == {dtype}


@pytest.mark.parametrize(
    ('changes', 'scale'), [({}, 8 / 4), ({'use_rslora': True}, 8 / 4**0.5), ({'r': 16, 'lora_alpha': 4.0}, 4 / 16)]
)
def test_rank_and_scale_are_in_force(changes: dict[str, Any], scale: float, tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    adapted = tune_model(load_model(tiny('qwen2'), spec.components), spec.components, lora_cfgs=lora_cfgs(**changes))
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert {layer.scaling['default'] for layer in layers} == {scale}
    assert {layer.lora_A['default'].weight.shape[0] for layer in layers} == {changes.get('r', 4)}


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('family', ['qwen2', 'llava'])
def test_quantised_bases_train_before_and_after_an_evaluation(family: str, bits: int, tiny: Tiny) -> None:
    pytest.importorskip('bitsandbytes')
    spec = load_spec(tiny(family))
    bnb = BnbCfgs(use_bnb=True, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    base = load_model(tiny(family), spec.components, dtype=torch.bfloat16, bnb_cfgs=bnb)
    quantised = {
        name
        for name, parameter in base.named_parameters()
        if type(parameter).__name__ == {4: 'Params4bit', 8: 'Int8Params'}[bits]
    }
    linear = {f'{name}.weight' for name in _linear(base) if spec.component_of(f'{name}.weight') == 'language_model'}
    assert quantised == linear - {'lm_head.weight'}
    model = tune_model(base, spec.components, lora_cfgs=lora_cfgs(), dtype=torch.bfloat16)
    stir(model)
    inputs = model_inputs(spec)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(**inputs, use_cache=False).logits.float().square().mean().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    before = gradients()
    assert before.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(gradient.abs().sum() > 0 for gradient in before.values())
    logits(model, inputs)
    after = gradients()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


def test_quantisation_that_cannot_be_done(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec(tiny('qwen2'))
    with pytest.raises(ModelError, match='exactly one'):
        load_model(tiny('qwen2'), spec.components, bnb_cfgs=BnbCfgs(use_bnb=True, load_in_8bit=True))
    monkeypatch.setattr(quantization.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModelError, match=r'align-anything\[bnb\]'):
        load_model(tiny('qwen2'), spec.components, bnb_cfgs=BnbCfgs(use_bnb=True))


def test_quantised_weights_need_adapters(tiny: Tiny) -> None:
    pytest.importorskip('bitsandbytes')
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components, bnb_cfgs=BnbCfgs(use_bnb=True))
    with pytest.raises(ModelError, match='without lora_cfgs.use_lora'):
        tune_model(model, spec.components)
