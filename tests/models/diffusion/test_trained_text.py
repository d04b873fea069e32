"""Text encoders that are trained along say what those of the pipeline say, learn, and are saved with the denoiser."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.models.checkpointing import ALL_LAYERS
from align_anything.models.diffusion.checkpoint import denoiser_skeleton, load_denoiser, load_spec
from align_anything.models.diffusion.export import export_denoiser
from align_anything.models.diffusion.lora import apply_lora, kohya_state, lora_state
from align_anything.models.diffusion.saved_lora import check_saved_lora, load_saved_lora
from align_anything.models.diffusion.spec import DiffusionSpec
from tests.models.diffusion.cases import PROMPT, folder_of, opened, whole_pipeline
from tests.models.diffusion.test_exports import CFGS

FAMILIES = ['sd15', 'sdxl']
PROMPTS = [PROMPT, '', 'the quick brown fox']


@functools.cache
def trained(family: str) -> tuple[DiffusionSpec, Any]:
    """The rules of a family whose text is trained along, and what is frozen of its pipeline."""
    spec = load_spec(folder_of(family), opened(family).spec.sizing, train_text=True)
    return spec, spec.open(torch.device('cpu'))


def predicted(spec: DiffusionSpec, frozen: Any, denoiser: nn.Module) -> torch.Tensor:
    shape = spec.latent_shape(spec.default_size())
    sample = torch.randn(len(PROMPTS), *shape, generator=torch.Generator().manual_seed(1))
    conditions = spec.stack(spec.encode_text(frozen, PROMPTS))
    return spec.predict(denoiser, sample, spec.levels(4, shape)[[0, 2, 3]], conditions, 1.0)


@pytest.mark.parametrize('family', FAMILIES)
def test_it_says_what_prepared_text_says(family: str) -> None:
    tiny, (spec, frozen) = opened(family), trained(family)
    denoiser = load_denoiser(spec).eval()
    with torch.no_grad():
        assert torch.equal(predicted(spec, frozen, denoiser), predicted(tiny.spec, tiny.frozen, tiny.denoiser))
    assert not {*spec.trainable_text} & {
        name for name, part in frozen.components.items() if isinstance(part, nn.Module)
    }
    names = {name for name, _ in denoiser_skeleton(spec).named_parameters()}
    assert names == {name for name, _ in denoiser.named_parameters()}


@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_reach_the_text_encoders_and_checkpointing_changes_none(family: str) -> None:
    spec, frozen = trained(family)
    found = []
    for checkpoints in (False, True):
        denoiser = load_denoiser(spec)
        if checkpoints:
            denoiser.enable_gradient_checkpointing(ALL_LAYERS.function)
        predicted(spec, frozen, denoiser).square().mean().backward()
        found.append({name: own.grad for name, own in denoiser.named_parameters() if own.grad is not None})
    plain, again = found
    for name in spec.trainable_text:
        assert any(key.startswith(f'{name}.') and own.abs().max() > 0 for key, own in plain.items())
    assert plain.keys() == again.keys()
    assert all(torch.allclose(own, again[name], rtol=1e-4, atol=1e-6) for name, own in plain.items())


@pytest.mark.parametrize('family', FAMILIES)
def test_a_whole_pipeline_is_saved_with_them(family: str, tmp_path: Path) -> None:
    spec, _ = trained(family)
    denoiser = load_denoiser(spec)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.25)
    export_denoiser(denoiser, None, tmp_path, spec=spec)
    again = whole_pipeline(tmp_path)
    for name in spec.denoisers:
        own = denoiser.get_submodule(name).state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in getattr(again, name).state_dict().items())
        assert type(getattr(again, name)) is type(denoiser.get_submodule(name))


@pytest.mark.parametrize('family', FAMILIES)
def test_adapters_of_all_are_in_one_file(family: str, tmp_path: Path) -> None:
    spec, frozen = trained(family)
    torch.manual_seed(3)
    model = apply_lora(load_denoiser(spec).eval(), CFGS, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(0, 0.3)
    export_denoiser(model, None, tmp_path, spec=spec)
    pipeline = whole_pipeline(folder_of(family))
    pipeline.load_lora_weights(str(tmp_path))
    tiny = opened(family)
    with torch.no_grad():
        expected, before = predicted(spec, frozen, model), predicted(tiny.spec, tiny.frozen, tiny.denoiser)
        found = predicted(tiny.spec, pipeline, pipeline.unet)
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1e-2)
    loaded = [
        tensor
        for name in spec.denoisers
        for key, tensor in getattr(pipeline, name).state_dict().items()
        if 'lora_' in key
    ]
    assert len(loaded) == len(lora_state(model)) and any('text_encoder' in name for name in lora_state(model))
    check_saved_lora(tmp_path, spec, CFGS)
    again = apply_lora(load_denoiser(spec), CFGS, spec)
    load_saved_lora(again, tmp_path, spec)
    assert all(torch.equal(tensor, lora_state(again)[name]) for name, tensor in lora_state(model).items())
    with pytest.raises(ModelError, match='Set diffusion_cfgs.train_text_encoder'):
        check_saved_lora(tmp_path, tiny.spec, CFGS)
    with pytest.raises(ModelError, match='these names are those of a denoiser alone'):
        kohya_state(model)
    export_denoiser(apply_lora(load_denoiser(tiny.spec), CFGS, tiny.spec), None, tmp_path / 'alone', spec=tiny.spec)
    with pytest.raises(ModelError, match='Leave diffusion_cfgs.train_text_encoder out'):
        check_saved_lora(tmp_path / 'alone', spec, CFGS)


def test_an_adapter_of_diffusers_own_scripts_is_loaded_with_its_text(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers

    spec, _ = trained('sd15')
    model = apply_lora(load_denoiser(spec), CFGS.model_copy(update={'lora_alpha': 2}), spec)
    by_part: dict[str, dict[str, torch.Tensor]] = {name: {} for name in spec.denoisers}
    for name, tensor in lora_state(model).items():
        part, _, rest = name.partition('.')
        by_part[part][rest] = tensor
    layers = {f'{name}_lora_layers': convert_state_dict_to_diffusers(own) for name, own in by_part.items()}
    type(opened('sd15').whole).save_lora_weights(str(tmp_path), **layers)
    again = apply_lora(load_denoiser(spec), CFGS.model_copy(update={'lora_alpha': 2}), spec)
    load_saved_lora(again, tmp_path, spec)
    assert all(torch.equal(tensor, lora_state(again)[name]) for name, tensor in lora_state(model).items())


def test_other_families_are_refused_by_name() -> None:
    for family in ('sd3', 'pixart'):
        with pytest.raises(ModelError, match='train_text_encoder: the text encoders of .* are not trained along'):
            load_spec(folder_of(family), train_text=True)
