"""What is trained of a pipeline: loaded alone, reached by gradients, checked for what is wrong with its files."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion import families
from align_anything.models.diffusion.checkpoint import (
    denoiser_skeleton,
    enable_gradient_checkpointing,
    is_pipeline,
    load_denoiser,
    load_spec,
)
from align_anything.models.diffusion.families.stable_diffusion_3 import StableDiffusion3Spec
from align_anything.models.diffusion.spec import Sizing
from align_anything.testing.tiny import build
from tests.models.diffusion.cases import CASES, LENGTH, PROMPT, conditions, folder_of, opened

FAMILIES = sorted(CASES)


def gradients(family: str, model: nn.Module) -> dict[str, torch.Tensor | None]:
    """Gradients of what a denoiser predicts, in training mode."""
    tiny = opened(family)
    levels = tiny.spec.levels(4, tiny.shape)[[0, 3]]
    sample = torch.randn(2, *tiny.shape, generator=torch.Generator().manual_seed(1))
    given = tiny.spec.stack(conditions(tiny, PROMPT, 'the dog'))
    model.zero_grad()
    tiny.spec.predict(model, sample, levels, given, 1.0).sub(1).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_reach_all_and_checkpointing_changes_none(family: str) -> None:
    model = load_denoiser(opened(family).spec)
    plain = gradients(family, model)
    unreached = {name for name, gradient in plain.items() if gradient is None or not gradient.any()}
    expected = {name for name in unreached if any(part in name for part in CASES[family].unreached)}
    assert unreached == expected and bool(expected) == bool(CASES[family].unreached)
    spec = opened(family).spec
    if family in ('text_to_video_sd', 'audioldm2'):
        with pytest.raises(ModelError, match='train_cfgs.gradient_checkpointing: .* trains without'):
            enable_gradient_checkpointing(model, spec)
        return
    enable_gradient_checkpointing(model, spec)
    again = gradients(family, model)
    for name, gradient in plain.items():
        if gradient is not None:
            assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize('family', FAMILIES)
def test_a_denoiser_is_loaded_in_one_type_and_has_a_skeleton(family: str) -> None:
    spec = opened(family).spec
    model = load_denoiser(spec, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and model.training
    skeleton = denoiser_skeleton(spec)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize('family', ['sd15', 'sd3'])
def test_the_same_arguments_make_the_same_files(family: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = build(family, tmp_path / 'again')
    assert torch.equal(state, torch.get_rng_state())
    files = {file.relative_to(again) for file in again.rglob('*') if file.is_file()}
    first = folder_of(family)
    assert files == {file.relative_to(first) for file in first.rglob('*') if file.is_file()}
    assert all((again / file).read_bytes() == (first / file).read_bytes() for file in files)
    other = build(family, tmp_path / 'other', seed=1)
    name = f'{opened(family).spec.denoiser}/diffusion_pytorch_model.safetensors'
    assert (other / name).read_bytes() != (first / name).read_bytes()


def test_pipelines_are_told_from_other_folders(tmp_path: Path) -> None:
    assert is_pipeline(folder_of('sd3')) and not is_pipeline(tmp_path) and not is_pipeline('nobody/nothing-at-all')
    with pytest.raises(ModelError, match=r'model_index\.json'):
        load_spec(tmp_path)
    with pytest.raises(ModelError, match='cannot be downloaded'):
        load_spec('nobody/nothing-at-all')


def edited(family: str, folder: Path, file: str, **changes: object) -> Path:
    """A copy of a tiny pipeline with a JSON file changed."""
    shutil.copytree(folder_of(family), folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


def test_a_pipeline_of_no_family_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    folder = edited('sd3', tmp_path / 'other', 'model_index.json', _class_name='StableDiffusion3Pipelin')
    with pytest.raises(ModelError, match="mean 'StableDiffusion3Pipeline'") as caught:
        load_spec(folder)
    assert 'how its denoiser is called' in str(caught.value) and 'FluxPipeline' in str(caught.value)
    nameless = edited('sd3', tmp_path / 'nameless', 'model_index.json', _class_name=None)
    with pytest.raises(ModelError, match='_class_name'):
        load_spec(nameless)


def test_an_incomplete_pipeline_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of('sd3'), tmp_path / 'torn'))
    shutil.rmtree(folder / 'vae')
    with pytest.raises(ModelError, match='vae is missing'):
        load_spec(folder)
    bare = edited('sd3', tmp_path / 'bare', 'model_index.json', transformer=[None, None])
    with pytest.raises(ModelError, match='has no transformer'):
        load_spec(bare)
    scheduler = edited('sd3', tmp_path / 'odd', 'scheduler/scheduler_config.json', _class_name='OddScheduler')
    with pytest.raises(ModelError, match='noising process of OddScheduler'):
        load_spec(scheduler)


def test_weights_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of('sd3'), tmp_path / 'torn'))
    file = folder / 'transformer' / 'diffusion_pytorch_model.safetensors'
    weights = load_file(file)
    del weights['proj_out.bias']
    weights['proj_out.weight'] = torch.zeros(3, 3)
    save_file(weights, file, metadata={'format': 'pt'})
    with pytest.raises(ModelError, match=r'Missing: proj_out\.bias.*proj_out\.weight \(3, 3\)'):
        load_denoiser(load_spec(folder))
    file.write_bytes(b'nothing')
    with pytest.raises(ModelError, match='does not load as SD3Transformer2DModel'):
        load_denoiser(load_spec(folder))


def test_an_installed_package_brings_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = edited('sd3', tmp_path / 'own', 'model_index.json', _class_name='OwnPipeline')
    package = SimpleNamespace(name='own', version='0.1')
    point = SimpleNamespace(name='OwnPipeline', value='own:Spec', load=lambda: StableDiffusion3Spec, dist=package)
    monkeypatch.setattr(families._PLUGINS, '_points', {'OwnPipeline': point})
    assert type(load_spec(folder)) is StableDiffusion3Spec and 'OwnPipeline' in families.pipeline_names()
    monkeypatch.setattr(families._PLUGINS, '_points', {'FluxPipeline': point})
    with pytest.raises(ModelError, match='registered twice'):
        load_spec(folder)


def test_what_a_pipeline_imports_without_asking_is_missed_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    for family, package in (('wan', 'ftfy'), ('stable_audio', 'torchsde')):
        absent = functools.partial(lambda name, missing: None if name == missing else found(name), missing=package)
        monkeypatch.setattr(importlib.util, 'find_spec', absent)
        with pytest.raises(ModelError, match=rf'needs {package}: pip install .align-anything\[diffusion\]'):
            load_spec(folder_of(family), Sizing(resolution=(32, 32), num_frames=5))


def test_sizes_that_a_family_cannot_have_are_refused() -> None:
    with pytest.raises(ModelError, match='multiples of 8. The nearest is 32 × 32'):
        load_spec(folder_of('sd3'), Sizing(resolution=(36, 33)), text_length=LENGTH)
    with pytest.raises(ModelError, match='at most 128 pixels'):
        load_spec(folder_of('sd3'), Sizing(resolution=(136, 32)))


def test_a_length_of_prompts_that_the_tokenizer_alone_says_is_refused() -> None:
    with pytest.raises(ModelError, match='diffusion_cfgs.max_sequence_length: prompts of a StableDiffusionPipeline'):
        load_spec(folder_of('sd15'), text_length=9)
    assert load_spec(folder_of('cogvideox'), text_length=9).text_length == 9
    own = load_spec(folder_of('cogvideox')).text_length
    assert own == load_spec(folder_of('cogvideox')).configs['transformer']['max_text_seq_length']
