"""What a denoiser keeps for its backward pass is counted without weights, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import ModelError
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.diffusion.activations import kept_for_backward
from align_anything.models.diffusion.checkpoint import (
    denoiser_skeleton,
    enable_gradient_checkpointing,
    load_denoiser,
    load_spec,
)
from align_anything.models.diffusion.spec import DiffusionSpec, Sizing

Tiny = Callable[..., Path]
OTHERS = (
    *('sdxl', 'flux', 'flux2_klein', 'flux_kontext', 'pixart', 'sana', 'ltx', 'cogvideox', 'text_to_video_sd'),
    *('stable_audio', 'wan', 'z_image', 'qwen_image', 'qwen_image_edit', 'hunyuan_video', 'ace_step'),
)


def of(folder: Path) -> DiffusionSpec:
    return load_spec(folder, Sizing(resolution=(32, 32), num_frames=5))


def kept(spec: DiffusionSpec, rows: int) -> int:
    """What autograd keeps in a real call."""
    prompt = spec.blank_prompt()
    frozen = spec.open(torch.device('cpu'))
    (conditions,) = spec.encode_read(frozen, [spec.read(prompt)])
    if prompt.pictures:
        conditions |= spec.encode_pictures(frozen, prompt)
    denoiser = load_denoiser(spec).train()
    weights = {weight.untyped_storage().data_ptr() for weight in denoiser.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    sample = torch.randn(rows, *spec.latent_shape(spec.default_size()))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        spec.predict(denoiser, sample, torch.full((rows,), 0.5), spec.stack([conditions] * rows), 1.0)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(
    'family',
    [
        'sd15',
        'sd3',
        *(pytest.param(name, marks=pytest.mark.extended) for name in OTHERS),
    ],
)
def test_what_a_denoiser_keeps(tiny: Tiny, family: str) -> None:
    spec = of(tiny(family))
    for rows in (1, 3):
        assert kept_for_backward(spec, denoiser_skeleton(spec), rows, torch.float32) == kept(spec, rows)
    half = kept_for_backward(spec, denoiser_skeleton(spec).to(torch.bfloat16), 1, torch.bfloat16)
    # Tables of rotary positions stay in float32.
    assert half < 0.8 * kept(spec, 1)


def test_blocks_that_are_computed_anew_keep_less(tiny: Tiny) -> None:
    spec = of(tiny('sd3'))
    whole = kept_for_backward(spec, denoiser_skeleton(spec), 1, torch.float32)
    recomputing = denoiser_skeleton(spec)
    enable_gradient_checkpointing(recomputing, spec)
    kept_there = kept_for_backward(spec, recomputing, 1, torch.float32)
    assert kept_there < 0.8 * whole
    enable_gradient_checkpointing(recomputing, spec, Checkpointing(offload=True))
    assert kept_for_backward(spec, recomputing, 1, torch.float32) < kept_there
    with pytest.raises(ModelError, match='gradient_checkpointing_every_n_layers: diffusers computes all blocks'):
        enable_gradient_checkpointing(recomputing, spec, Checkpointing(every=2))
