"""Saved adapters are found, put back exactly, trained on, and refused where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import ModelError, SettingsError
from align_anything.models import structure
from align_anything.models.adapter import find_adapter, put_on
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_model, load_pretrained_models, load_spec, tune_model
from tests.models.common import logits, lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]
TEXTS = ('hello world', ' two  spaces', 'a\nb', '<|im_end|>', 'ünïcode 123')


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Callable[..., tuple[Path, torch.Tensor]]:
    """`trained('llava', r=8)` returns the folder of an adapter and the logits of the model it was saved from."""

    def make(family: str, **changes: Any) -> tuple[Path, torch.Tensor]:
        spec = load_spec(tiny(family))
        model = tune_model(load_model(tiny(family), spec.components), spec.components, lora_cfgs=lora_cfgs(**changes))
        stir(model)
        out = tmp_path / 'adapter'
        export_model(model, None, out, tokenizer=spec.tokenizer, processor=spec.processor)
        return out, logits(model, model_inputs(spec))

    return make


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ('family', 'changes'),
    [
        ('qwen2', {}),
        ('qwen2', {'use_dora': True, 'use_rslora': True}),
        ('llava', {'vision_lora': True, 'modules_to_save': ['multi_modal_projector']}),
        ('qwen3_moe', {}),
        ('qwen2_vl', {}),
    ],
)
def test_training_goes_on_where_it_stopped(family: str, changes: dict[str, Any], tiny: Tiny, trained: Any) -> None:
    folder, expected = trained(family, **changes)
    model, _, _ = load_pretrained_models(folder, lora_cfgs=lora_cfgs(**changes))
    spec = load_spec(folder)
    assert torch.equal(logits(model, model_inputs(spec)), expected)
    # Not by chance: the model under the adapter says something else.
    assert not torch.allclose(logits(load_model(folder, spec.components), model_inputs(spec)), expected, atol=1e-3)
    fresh = tune_model(load_model(tiny(family), spec.components), spec.components, lora_cfgs=lora_cfgs(**changes))
    assert [(name, value.requires_grad, value.dtype) for name, value in model.named_parameters()] == [
        (name, value.requires_grad, value.dtype) for name, value in fresh.named_parameters()
    ]


@pytest.mark.parametrize('family', ['qwen2', 'llama', 'llava', 'qwen2_vl'])
def test_the_tokenizer_beside_an_adapter_is_that_of_the_model(family: str, tiny: Tiny, trained: Any) -> None:
    folder, _ = trained(family)
    found, known = load_spec(folder), load_spec(tiny(family))
    assert found.renderer.template == known.renderer.template
    assert found.stop_token_ids == known.stop_token_ids
    for text in TEXTS:
        assert found.tokenizer(text).input_ids == known.tokenizer(text).input_ids, text


def test_a_template_trained_with_an_adapter_stays_with_it(tiny: Tiny, tmp_path: Path, trained: Any) -> None:
    folder, _ = trained('qwen2')
    template = load_spec(tiny('qwen2')).renderer.template.replace('<|im_start|>', '<|im_start|>!')
    (folder / 'chat_template.jinja').write_text(template)
    assert load_spec(folder).renderer.template == template


def test_settings_must_be_those_of_the_adapter(trained: Any) -> None:
    folder, _ = trained('qwen2', r=8)
    with pytest.raises(SettingsError) as caught:
        load_pretrained_models(folder, lora_cfgs=lora_cfgs(r=4, lora_alpha=32, modules_to_save=['embed_tokens']))
    message = str(caught.value)
    assert 'set --r 8' in message and 'set --lora_alpha 8' in message and "['embed_tokens']" in message
    with pytest.raises(ModelError, match=r'unexpected are those for: model\.layers\.0\.mlp.*target_modules'):
        load_pretrained_models(folder, lora_cfgs=lora_cfgs(r=8, target_modules=['q_proj']))
    with pytest.raises(SettingsError, match='align-anything merge'):
        load_pretrained_models(folder)
    with pytest.raises(SettingsError, match='use_lora'):
        load_pretrained_models(folder, lora_cfgs=lora_cfgs(use_lora=False))


def test_a_skeleton_tells_too_that_targets_differ(trained: Any) -> None:
    folder, _ = trained('qwen2')
    spec, adapter = load_spec(folder), find_adapter(folder)
    tune_model(structure.skeleton(spec.config), spec.components, lora_cfgs=lora_cfgs(), adapter=adapter)
    with pytest.raises(ModelError, match='unexpected are'):
        tune_model(
            structure.skeleton(spec.config),
            spec.components,
            lora_cfgs=lora_cfgs(target_modules=['q_proj']),
            adapter=adapter,
        )


def test_put_back_it_says_what_it_said(tiny: Tiny, trained: Any) -> None:
    folder, expected = trained('llava', modules_to_save=['multi_modal_projector'])
    spec = load_spec(folder)
    model = put_on(load_model(folder, spec.components), find_adapter(folder))
    assert torch.equal(logits(model, model_inputs(spec)), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ('family', 'options', 'words'),
    [
        ('opt', {}, 'Target modules .* not found'),
        ('qwen2', {'layers': 1}, 'unexpected are those for: model.layers.1'),
        ('qwen2', {'layers': 3, 'hidden': 128}, r'another shape are: .*\(4, 64\) for \(4, 128\)'),
    ],
)
def test_other_models_refuse_it(family: str, options: dict[str, int], words: str, tiny: Tiny, trained: Any) -> None:
    folder, _ = trained('qwen2')
    source = tiny(family, **options)
    model = load_model(source, load_spec(source).components)
    with pytest.raises(ModelError, match=f'not fit.*{words}'):
        put_on(model, find_adapter(folder))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'peft_type': 'ADALORA'}, "peft_type 'ADALORA'; only 'LORA'"),
        ({'bias': 'all'}, "bias 'all'"),
        ({'init_lora_weights': 'pissa_niter_4'}, 'changes the base'),
        ({'base_model_name_or_path': None}, 'does not say which model'),
        ({'base_model_name_or_path': '/no/such/model'}, 'which does not exist'),
        ({'rank_pattern': {'q_proj': 2}}, 'rank_pattern'),
    ],
)
def test_adapters_that_cannot_be_trained_on(changes: dict[str, Any], words: str, trained: Any) -> None:
    folder, _ = trained('qwen2')
    _edit(folder, **changes)
    with pytest.raises((ModelError, SettingsError), match=words):
        load_pretrained_models(folder, lora_cfgs=lora_cfgs())


def test_damaged_weights(trained: Any) -> None:
    folder, _ = trained('qwen2')
    file = folder / 'adapter_model.safetensors'
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match='cannot be read'):
        load_pretrained_models(folder, lora_cfgs=lora_cfgs())
    file.unlink()
    with pytest.raises(ModelError, match='cannot be read'):
        load_pretrained_models(folder, lora_cfgs=lora_cfgs())


def test_what_is_no_adapter_folder(tiny: Tiny, tmp_path: Path, trained: Any) -> None:
    folder, _ = trained('qwen2')
    assert find_adapter(tiny('qwen2')) is None and find_adapter('owner/name') is None
    (folder / 'config.json').write_text('{}')
    assert find_adapter(folder).base == str(tiny('qwen2'))
    # A merged model may keep the adapter's configuration beside it.
    (folder / 'model.safetensors').touch()
    assert find_adapter(folder) is None
