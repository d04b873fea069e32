"""An adapter merged into its pipeline is what diffusers makes of both, to the bit, in the pipeline's own types."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from align_anything.cli.merging import merge_adapter
from align_anything.core.errors import ModelError
from align_anything.models.diffusion.export import export_denoiser
from tests.models.diffusion.cases import opened, own_sample, solvable, values, whole_pipeline
from tests.models.diffusion.test_exports import adapted

SECOND = {'weight_name': 'pytorch_lora_weights_transformer_2.safetensors', 'load_into_transformer_2': True}


def made_by(family: str, pipeline: Any) -> numpy.ndarray:
    return values(own_sample(family, solvable(pipeline, opened(family).spec)))


@pytest.mark.parametrize(
    ('family', 'settings'),
    [
        ('sd3', {}),
        pytest.param('sd15', {'use_rslora': True}, marks=pytest.mark.extended),
        pytest.param('wan22', {}, marks=pytest.mark.extended),
        pytest.param('sd3', {'use_dora': True}, marks=pytest.mark.extended),
        pytest.param('qwen_image', {}, marks=pytest.mark.extended),
    ],
    ids=['plain', 'rslora', 'experts', 'dora', 'other'],
)
def test_the_merged_pipeline_is_what_diffusers_fuses(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    tiny = opened(family)
    export_denoiser(adapted(family, **settings), None, tmp_path / 'run' / 'slice_end', spec=tiny.spec)
    merge_adapter(tmp_path / 'run', tmp_path / 'merged')
    merged, fused = whole_pipeline(tmp_path / 'merged'), whole_pipeline(tiny.folder)
    fused.load_lora_weights(str(tmp_path / 'run' / 'slice_end'))
    if len(tiny.spec.denoisers) == 2:
        fused.load_lora_weights(str(tmp_path / 'run' / 'slice_end'), **SECOND)
    fused.fuse_lora(components=list(tiny.spec.denoisers))
    fused.unload_lora_weights()
    changed = 0
    for name in tiny.spec.denoisers:
        before, expected = (getattr(each, name).state_dict() for each in (tiny.whole, fused))
        found = getattr(merged, name).state_dict()
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            if 'use_dora' in settings:
                torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=1e-5)
            else:
                assert torch.equal(found[key], tensor), key
        changed += sum(not torch.equal(found[key], tensor) for key, tensor in before.items())
    assert changed >= len(tiny.spec.denoisers)
    shown = made_by(family, merged)
    assert numpy.abs(shown - made_by(family, fused)).max() <= ('use_dora' in settings)
    assert numpy.abs(shown - values(own_sample(family, tiny.whole))).max() > 2
    card = ModelCard.load(tmp_path / 'merged' / 'README.md')
    assert card.data.library_name == 'diffusers' and "from_pretrained('.')" in card.text
    assert 'load_lora_weights' not in card.text


def test_each_weight_keeps_the_type_that_the_pipeline_has_it_in(tmp_path: Path) -> None:
    tiny = opened('sd3')
    base, adapter = tmp_path / 'base', tmp_path / 'adapter'
    shutil.copytree(tiny.folder, base)
    (file,) = (base / 'transformer').glob('*.safetensors')
    norms = {name for name in load_file(file) if 'norm' in name}
    stored = {name: tensor if name in norms else tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(stored, file, {'format': 'pt'})
    export_denoiser(adapted('sd3'), None, adapter, spec=tiny.spec)
    merge_adapter(adapter, tmp_path / 'merged', base=str(base))
    merged = load_file(tmp_path / 'merged' / 'transformer' / file.name)
    assert norms and {name: tensor.dtype for name, tensor in merged.items()} == {
        name: tensor.dtype for name, tensor in stored.items()
    }
    loras = load_file(adapter / 'pytorch_lora_weights.safetensors')
    touched = {name.removeprefix('transformer.').rpartition('.lora_')[0] for name in loras}
    for name, tensor in stored.items():
        module = name.removesuffix('.weight')
        if module in touched and name.endswith('.weight'):
            up, down = (loras[f'transformer.{module}.lora_{letter}.weight'] for letter in 'BA')
            # lora_alpha / r = 8 / 2, rounded once.
            assert torch.equal(merged[name], (tensor.float() + 4 * (up @ down)).bfloat16()), name
        else:
            assert torch.equal(merged[name], tensor), name


def test_the_adapter_of_another_pipeline_leaves_nothing(tmp_path: Path) -> None:
    export_denoiser(adapted('sd3'), None, tmp_path / 'adapter', spec=opened('sd3').spec)
    with pytest.raises(ModelError, match='is not a pipeline'):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'merged', base=str(tmp_path / 'adapter'))
    with pytest.raises(ModelError, match='holds weights of transformer, and unet of a StableDiffusionPipeline is'):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'merged', base=str(opened('sd15').folder))
    assert {path.name for path in tmp_path.iterdir()} == {'adapter'}
