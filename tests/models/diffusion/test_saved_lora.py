"""Saved adapters of pipelines are read as what they are: by the settings they were trained with, for their pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.models.diffusion.checkpoint import denoiser_skeleton, load_denoiser, load_spec
from align_anything.models.diffusion.export import export_denoiser
from align_anything.models.diffusion.library import pipeline_class
from align_anything.models.diffusion.lora import apply_lora, lora_state
from align_anything.models.diffusion.saved_lora import base_of, check_saved_lora, is_lora_folder, load_saved_lora
from tests.models.diffusion.cases import opened
from tests.models.diffusion.test_exports import CFGS, adapted

FILE = 'pytorch_lora_weights.safetensors'


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Writes an adapter of a tiny pipeline; returns the folder and the adapted denoiser."""

    def write(family: str, **settings: Any) -> tuple[Path, Any]:
        model, folder = adapted(family, **settings), tmp_path / family
        export_denoiser(model, None, folder, spec=opened(family).spec)
        return folder, model

    return write


def fresh(family: str, **settings: Any) -> Any:
    """A denoiser with a new adapter."""
    tiny = opened(family)
    return apply_lora(load_denoiser(tiny.spec), CFGS.model_copy(update=settings), tiny.spec)


@pytest.mark.parametrize(
    ('family', 'settings'),
    [('sd3', {}), ('sd15', {'use_rslora': True}), ('wan22', {}), ('sd3', {'use_dora': True})],
    ids=['plain', 'rslora', 'experts', 'dora'],
)
def test_an_adapter_of_ours_is_loaded_to_the_bit(
    family: str, settings: dict[str, Any], saved: Callable[..., tuple[Path, Any]]
) -> None:
    folder, model = saved(family, **settings)
    spec = opened(family).spec
    assert is_lora_folder(folder) and base_of(folder) == str(spec.folder)
    check_saved_lora(folder, spec, CFGS.model_copy(update=settings))
    again = fresh(family, **settings)
    load_saved_lora(again, folder, spec)
    expected, found = lora_state(model), lora_state(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_an_adapter_of_diffusers_own_scripts_is_loaded(tmp_path: Path) -> None:
    """With the names that they give those of a UNet, and no settings beside them."""
    from diffusers.utils import convert_state_dict_to_diffusers

    model, spec = adapted('sd15', lora_alpha=2), opened('sd15').spec
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    plain = {name.removeprefix('base_model.model.'): tensor for name, tensor in layers.items()}
    pipeline_class(spec.model_type, spec.folder).save_lora_weights(str(tmp_path), unet_lora_layers=plain)
    assert any('.lora.down.' in name for name in load_file(tmp_path / FILE))
    same = CFGS.model_copy(update={'lora_alpha': 2.0})
    check_saved_lora(tmp_path, spec, same)
    again = fresh('sd15', lora_alpha=2)
    load_saved_lora(again, tmp_path, spec)
    found = lora_state(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in lora_state(model).items())
    # diffusers takes one that says nothing for one whose alpha is its rank.
    with pytest.raises(SettingsError, match='set --lora_alpha 2'):
        check_saved_lora(tmp_path, spec, CFGS)
    with pytest.raises(ModelError, match='does not say which pipeline .* diffusion_cfgs.lora_weights'):
        base_of(tmp_path)


@pytest.mark.parametrize('key', ['r', 'lora_alpha', 'use_rslora', 'use_dora'])
def test_settings_that_differ_are_named(key: str, saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved('sd15')
    other = CFGS.model_copy(update={key: True if key.startswith('use') else 6})
    with pytest.raises(SettingsError, match=f'lora_cfgs.{key} is .*, but the adapter in .*: set --{key}'):
        check_saved_lora(folder, opened('sd15').spec, other)


def test_an_adapter_of_another_pipeline_is_refused(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved('sd15')
    with pytest.raises(ModelError, match='holds weights of unet, and transformer of a StableDiffusion3Pipeline is'):
        check_saved_lora(folder, opened('sd3').spec, CFGS)
    with pytest.raises(ModelError, match='do not fit UNet2DConditionModel .* Name the pipeline'):
        load_saved_lora(fresh('sdxl'), folder, opened('sdxl').spec)


def test_other_targets_are_refused_without_weights(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved('sd15')
    spec = opened('sd15').spec
    fewer = apply_lora(denoiser_skeleton(spec), CFGS.model_copy(update={'target_modules': ['to_q']}), spec)
    with pytest.raises(ModelError, match='unexpected are those for.*target_modules'):
        load_saved_lora(fewer, folder, spec)


def test_what_is_no_adapter_is_none(saved: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = saved('sd15')
    spec = opened('sd15').spec
    assert not is_lora_folder(spec.folder) and not is_lora_folder('a hub/name')
    (folder / FILE).write_bytes(b'broken')
    with pytest.raises(ModelError, match='cannot be read'):
        base_of(folder)
    with pytest.raises(ModelError, match='cannot be read'):
        check_saved_lora(tmp_path / 'nowhere', spec, CFGS)


def test_a_base_that_was_moved_is_told(saved: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    moved = tmp_path / 'moved'
    shutil.copytree(opened('sd15').folder, moved)
    spec = load_spec(moved)
    folder = tmp_path / 'adapter'
    export_denoiser(apply_lora(load_denoiser(spec), CFGS, spec), None, folder, spec=spec)
    assert base_of(folder) == str(moved)
    shutil.rmtree(moved)
    with pytest.raises(ModelError, match='was trained on .*moved, which does not exist'):
        base_of(folder)


def test_weights_of_text_encoders_beside_are_refused(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved('sd15')
    weights = load_file(folder / FILE)
    save_file({**weights, 'text_encoder.q.lora_A.weight': torch.zeros(2, 2)}, folder / FILE)
    with pytest.raises(ModelError, match='holds weights of text_encoder, unet, and unet of a .*train_text_encoder'):
        check_saved_lora(folder, opened('sd15').spec, CFGS)


def test_layers_of_several_ranks_are_refused(tmp_path: Path) -> None:
    spec = opened('sd15').spec
    weights = {f'unet.{name}': tensor for name, tensor in lora_state(adapted('sd15')).items()}
    name = next(name for name in weights if 'lora_A' in name)
    save_file({**weights, name: torch.cat([weights[name]] * 2)}, tmp_path / FILE)
    with pytest.raises(ModelError, match=r'no rank that is the same for all layers, but \[2, 4\]'):
        check_saved_lora(tmp_path, spec, LoraCfgs(use_lora=True))


def test_the_metadata_is_what_diffusers_reads(saved: Callable[..., tuple[Path, Any]]) -> None:
    from safetensors import safe_open

    folder, _ = saved('sd15')
    with safe_open(folder / FILE, 'pt') as file:
        recorded = json.loads(file.metadata()['lora_adapter_metadata'])
    assert recorded['unet.lora_alpha'] == 8 and recorded['unet.base_model_name_or_path'] == str(opened('sd15').folder)
