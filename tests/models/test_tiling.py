"""MLPs in tiles have the gradients of whole ones, and what they compute is not kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import ModelError
from align_anything.models.activations import activations_of
from align_anything.models.pretrained_model import load_model, load_spec, tune_model
from align_anything.models.tiling import tile_mlps
from align_anything.models.trainable import enable_gradient_checkpointing
from tests.models.common import lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    ('family', 'adapts', 'recomputes'),
    [
        ('qwen2', None, False),
        # Nothing below the MLP of the first layer trains.
        ('qwen2', ['down_proj'], True),
        pytest.param('phi3', None, True, marks=pytest.mark.extended),
        pytest.param('gemma3', ['up_proj', 'q_proj'], True, marks=pytest.mark.extended),
        pytest.param('llava', None, True, marks=pytest.mark.extended),
    ],
)
def test_tiles_change_no_gradient_and_keep_nothing(
    family: str, adapts: list[str] | None, recomputes: bool, tiny: Tiny
) -> None:
    spec = load_spec(tiny(family))
    inputs = model_inputs(spec)
    inner = spec.config.get_text_config().intermediate_size
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape[-1] if tensor.ndim == 3 else 0)
        return tensor

    gradients = []
    # More tiles than tokens too: of some nothing is left.
    for tiles in (1, 3, inputs['input_ids'].shape[-1] + 2):
        torch.manual_seed(0)
        model = load_model(tiny(family), spec.components)
        model = tune_model(model, spec.components, lora_cfgs=lora_cfgs(target_modules=adapts) if adapts else None)
        stir(model)
        if recomputes:
            enable_gradient_checkpointing(model)
        if tiles > 1:
            tile_mlps(model, spec.component_of, tiles)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.train()(**inputs, use_cache=False).logits.float().square().mean()
        assert (inner in kept) == (tiles == 1 and not recomputes)
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    whole, *others = gradients
    assert all(whole[name].any() for name in whole if 'down_proj' in name and 'lora_A' not in name)
    for tiled in others:
        assert tiled.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(tiled[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_the_estimate_of_activations_counts_a_tile(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    text, tokens = spec.config.get_text_config(), 100
    layers, width, inner = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    mlp = 3 * (width + inner)
    less = layers * (mlp - width) - mlp / 4
    whole = activations_of(model, spec, tokens, 4, recomputes=None)
    assert activations_of(model, spec, tokens, 4, recomputes=None, tiles=4) == pytest.approx(whole - 4 * tokens * less)


@pytest.mark.parametrize(('family', 'found'), [('qwen3_moe', 'a Qwen3MoeSparseMoeBlock'), ('opt', 'no module named')])
def test_other_mlps_are_refused(family: str, found: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    model = load_model(tiny(family), spec.components)
    with pytest.raises(ModelError, match=f'train_cfgs.mlp_tiles: layer 0 of .* has {found}.*Set it to 1'):
        tile_mlps(model, spec.component_of, 2)
