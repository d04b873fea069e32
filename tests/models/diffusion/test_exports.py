"""What is saved is what diffusers loads: full denoisers, merged adapters and adapters, to the bit."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import ModelError
from align_anything.models.diffusion.checkpoint import denoiser_parts, denoiser_skeleton, load_denoiser
from align_anything.models.diffusion.export import export_denoiser
from align_anything.models.diffusion.lora import apply_lora, comfyui_state, kohya_state, require_loadable
from tests.models.diffusion.cases import CASES, opened, own_sample, solvable, solved, values, whole_pipeline

FAMILIES = sorted(CASES)
CFGS = LoraCfgs(use_lora=True, r=2, lora_alpha=8, lora_dropout=0.0)
REFUSED = ('pixart', 'pixart_sigma', 'text_to_video_sd', 'stable_audio', 'audioldm', 'audioldm2')
LOADS = [name for name in FAMILIES if name not in REFUSED]


def adapted(family: str, **settings: Any) -> nn.Module:
    """A denoiser with an adapter that changes what it says."""
    tiny = opened(family)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        model = apply_lora(load_denoiser(tiny.spec).eval(), CFGS.model_copy(update=settings), tiny.spec)
        for name, parameter in model.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(0, 0.3)
    return model


@functools.cache
def untouched(family: str) -> numpy.ndarray:
    """What the pipeline makes before anything is trained."""
    return values(own_sample(family, opened(family).whole))


def picture(family: str, pipeline: Any) -> numpy.ndarray:
    return values(own_sample(family, solvable(pipeline, opened(family).spec)))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_full_denoiser_is_saved_as_a_pipeline(family: str, tmp_path: Path) -> None:
    tiny = opened(family)
    changed = copy.deepcopy(tiny.denoiser)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.25)
    export_denoiser(changed, None, tmp_path, spec=tiny.spec)
    again = whole_pipeline(tmp_path)
    for name, (_, part) in denoiser_parts(tiny.spec, changed).items():
        state = getattr(again, name).state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in part.state_dict().items())
    assert type(again) is type(tiny.whole)
    before, after = untouched(family), picture(family, again)
    made = tiny.spec.decode_latents(tiny.frozen, solved(family, tiny, changed))
    assert numpy.abs(after - values(made)).max() <= 1 < numpy.abs(after - before).max()
    frozen = [file for file in sorted(tiny.folder.rglob('*')) if file.is_file()]
    for file in frozen:
        if file.relative_to(tiny.folder).parts[0] not in (*tiny.spec.denoisers, 'model_index.json'):
            assert (tmp_path / file.relative_to(tiny.folder)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('family', LOADS)
def test_an_adapter_is_loaded_by_the_pipeline_with_its_alpha(family: str, tmp_path: Path) -> None:
    tiny, model = opened(family), adapted(family)
    export_denoiser(model, None, tmp_path, spec=tiny.spec)
    again = whole_pipeline(tiny.folder)
    again.load_lora_weights(str(tmp_path))
    if len(tiny.spec.denoisers) == 2:
        file = 'pytorch_lora_weights_transformer_2.safetensors'
        again.load_lora_weights(str(tmp_path), weight_name=file, load_into_transformer_2=True)
    made = tiny.spec.decode_latents(tiny.frozen, solved(family, tiny, model))
    after = picture(family, again)
    changed = numpy.abs(after - untouched(family)).max()
    assert numpy.abs(after - values(made)).max() <= max(2, changed / 4) and changed > 2
    loaded, ours = (
        [tensor for network in networks for name, tensor in network.state_dict().items() if 'lora_' in name]
        for networks in ([getattr(again, name) for name in tiny.spec.denoisers], [model])
    )
    assert len(loaded) == len(ours) and all(torch.equal(*pair) for pair in zip(loaded, ours, strict=True))


@pytest.mark.parametrize('family', REFUSED)
def test_an_adapter_that_no_pipeline_loads_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match='save_full_model'):
        adapted(family)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_merged_adapter_is_part_of_the_weights(family: str, tmp_path: Path) -> None:
    tiny, model = opened(family), adapted(family, save_full_model=True)
    # As an engine hands over what it gathered, in another order and on its own.
    state = {name: tensor.clone() for name, tensor in sorted(model.state_dict().items())}
    before = {name: tensor.clone() for name, tensor in state.items()}
    export_denoiser(model, state, tmp_path, spec=tiny.spec, merge_adapter=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    again = whole_pipeline(tmp_path)
    merged = {
        prefix + name: tensor
        for component, (prefix, _) in denoiser_parts(tiny.spec, model.get_base_model()).items()
        for name, tensor in getattr(again, component).state_dict().items()
    }
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert layers
    for name, layer in layers.items():
        up, down = (part['default'].weight.double() for part in (layer.lora_B, layer.lora_A))
        expected = layer.base_layer.weight.double() + layer.scaling['default'] * up @ down
        found = merged[f'{name.removeprefix("base_model.model.")}.weight'].double()
        assert torch.allclose(found, expected, atol=1e-6), name
    # Not how near it comes to what adapter and weights make apart: some of these networks blow rounding up.
    assert numpy.abs(picture(family, again) - untouched(family)).max() > 2


@pytest.mark.parametrize('family', ['sd15', 'sd2', 'sdxl'])
@pytest.mark.parametrize('use_rslora', [False, True])
def test_kohyas_names_are_read(family: str, use_rslora: bool, tmp_path: Path) -> None:
    tiny, model = opened(family), adapted(family, use_rslora=use_rslora)
    save_file(kohya_state(model), tmp_path / 'kohya.safetensors')
    again = whole_pipeline(tiny.folder)
    again.load_lora_weights(str(tmp_path), weight_name='kohya.safetensors')
    made = tiny.spec.decode_latents(tiny.frozen, solved(family, tiny, model))
    assert numpy.abs(picture(family, again) - values(made)).max() <= 1


@pytest.mark.parametrize('family', ['z_image', 'qwen_image'])
def test_comfyuis_names_are_read(family: str, tmp_path: Path) -> None:
    tiny, model = opened(family), adapted(family)
    save_file(comfyui_state(model), tmp_path / 'comfyui.safetensors')
    again = whole_pipeline(tiny.folder)
    again.load_lora_weights(str(tmp_path), weight_name='comfyui.safetensors')
    made = tiny.spec.decode_latents(tiny.frozen, solved(family, tiny, model))
    assert numpy.abs(picture(family, again) - values(made)).max() <= 1


def test_targets_are_looked_for_in_the_denoiser() -> None:
    tiny = opened('sd3')
    with pytest.raises(ModelError, match='to_q'):
        apply_lora(load_denoiser(tiny.spec), CFGS.model_copy(update={'target_modules': ['to_qq']}), tiny.spec)
    some = apply_lora(load_denoiser(tiny.spec), CFGS.model_copy(update={'target_modules': ['ff.net.2']}), tiny.spec)
    names = {name for name, parameter in some.named_parameters() if parameter.requires_grad}
    assert names and all('.ff.net.2.lora_' in name for name in names)
    every = apply_lora(load_denoiser(tiny.spec), CFGS.model_copy(update={'target_modules': 'all-linear'}), tiny.spec)
    linear = [module for module in denoiser_skeleton(tiny.spec).modules() if isinstance(module, nn.Linear)]
    assert sum('lora_A' in name for name, _ in every.named_parameters()) == len(linear)


def test_a_state_of_another_denoiser_is_refused(tmp_path: Path) -> None:
    tiny = opened('sd3')
    with pytest.raises(ModelError, match='Missing key'):
        export_denoiser(tiny.denoiser, {'strange': torch.ones(1)}, tmp_path, spec=tiny.spec)


def test_an_adapter_of_a_pipeline_that_loads_one_is_written_as_diffusers_writes_it(tmp_path: Path) -> None:
    tiny = opened('sd3')
    require_loadable(tiny.spec)
    export_denoiser(adapted('sd3'), None, tmp_path, spec=tiny.spec)
    names = load_file(tmp_path / 'pytorch_lora_weights.safetensors')
    assert all(name.startswith('transformer.') for name in names)
