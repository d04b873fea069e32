"""Layers compiled one by one have the gradients of plain ones, for rows of any length; what cannot be, trains plain."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align_anything.core.counting import Counting
from align_anything.core.errors import ModelError
from align_anything.models import compiling
from align_anything.models.adapter import bare_model
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.compiling import CompiledForward, Compiling, compile_layers, repeated_blocks, told_of_layers
from align_anything.models.diffusion.checkpoint import enable_gradient_checkpointing as recompute_blocks
from align_anything.models.diffusion.checkpoint import load_denoiser
from align_anything.models.diffusion.checkpoint import load_spec as load_pipeline
from align_anything.models.diffusion.spec import Sizing
from align_anything.models.pretrained_model import load_model, load_spec, tune_model
from align_anything.models.tiling import layers_of
from align_anything.models.trainable import enable_gradient_checkpointing
from tests.models.common import lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]
Gradients = dict[str, torch.Tensor]


class Block(nn.Module):
    pass


def test_the_blocks_of_a_denoiser_are_those_that_its_class_names() -> None:
    class Denoiser(nn.Module):
        _no_split_modules = ['Block', 'Linear']

    model = Denoiser()
    model.blocks = nn.ModuleList([Block(), Block()])
    model.embed = nn.Linear(1, 1)
    assert repeated_blocks(nn.Sequential(model)) == list(model.blocks)
    assert told_of_layers(repeated_blocks(model)) == '2 × Block, one by one'
    with pytest.raises(ModelError, match='train_cfgs.torch_compile: Sequential does not name the blocks that repeat'):
        repeated_blocks(nn.Sequential(nn.ModuleList([Block()])))


def plain(*args: Any, **kwargs: Any) -> str:
    return 'plain'


def test_what_cannot_be_compiled_is_told_once_and_runs_plain(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit, InvalidBackend
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters['stats'], 'unique_graphs', 1)
    outcomes: list[Any] = []

    def compiled(*args: Any, **kwargs: Any) -> str:
        outcome = outcomes.pop(0) if outcomes else 'compiled'
        if isinstance(outcome, str):
            return outcome
        raise outcome

    shared = Compiling()
    ran, fails, later = (CompiledForward(plain, compiled, shared) for _ in range(3))
    assert ran(1) == 'compiled'
    assert ran(1, past_key_values=object()) == 'plain'
    outcomes += [FailOnRecompileLimitHit('x'), FailOnRecompileLimitHit('x'), InvalidBackend('gone'), ValueError('own')]
    with caplog.at_level(logging.WARNING):
        assert [ran(1), ran(1), fails(1)] == ['plain', 'plain', 'plain']
    with pytest.raises(ValueError, match='own'):
        ran(1)
    # What has been compiled stays so; what has not does not try.
    assert [ran(1), fails(1), later(1)] == ['compiled', 'plain', 'plain']
    forms, failed = (record.getMessage() for record in caplog.records)
    assert forms == 'torch_compile: a layer met more than 16 forms; others are computed plainly.'
    assert failed.startswith('torch_compile: layers train without, they cannot be compiled: InvalidBackend: Invalid')


def test_it_is_told_where_torch_compiles_nothing(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters['stats'], 'unique_graphs', 0)
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    with config.patch(disable=True), caplog.at_level(logging.WARNING):
        shared = compile_layers(layers)
        for layer in layers * 2:
            layer(torch.ones(1, 2))
    assert shared.failure == 'torch compiled none of what it was given, and says no reason'
    assert [record.getMessage() for record in caplog.records if record.name == compiling.__name__] == [
        f'torch_compile: layers train without, they cannot be compiled: {shared.failure}'
    ]


@pytest.fixture
def graphs() -> Callable[[], int]:
    """How many graphs have been compiled in the test, from none."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters['stats']['unique_graphs']


def alike(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys() and any(gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * scale + 1e-9, name


def gradients_of(model: nn.Module) -> Gradients:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.extended
@pytest.mark.parametrize(
    ('family', 'backend', 'adapts', 'how'),
    [
        ('qwen2', 'inductor', False, Checkpointing()),
        ('qwen2_vl', 'inductor', True, None),
        # Windows in every other layer.
        ('gemma3', 'aot_eager', False, Checkpointing(every=2)),
        ('llava', 'aot_eager', True, Checkpointing(offload=True)),
        # Routers, whose hooks break graphs.
        ('qwen3_moe', 'aot_eager', False, Checkpointing()),
    ],
)
def test_gradients_are_those_of_plain_layers(
    family: str, backend: str, adapts: bool, how: Checkpointing | None, tiny: Tiny, graphs, monkeypatch
) -> None:
    monkeypatch.setattr(compiling, 'BACKEND', backend)
    spec = load_spec(tiny(family))
    inputs = model_inputs(spec)
    gradients, shared = [], Compiling()
    for compiles in (False, True):
        torch.manual_seed(0)
        model = load_model(tiny(family), spec.components)
        model = tune_model(model, spec.components, lora_cfgs=lora_cfgs() if adapts else None)
        stir(model)
        if how is not None:
            enable_gradient_checkpointing(model, how)
        names = model.state_dict().keys()
        if compiles:
            shared = compile_layers(layers_of(bare_model(model), spec.component_of, 'torch_compile'))
        assert model.state_dict().keys() == names
        model.train()(**inputs, use_cache=False).logits.float().square().mean().backward()
        gradients.append(gradients_of(model))
    alike(gradients[1], gradients[0])
    if family == 'qwen3_moe':
        assert graphs() > 2 and shared == Compiling()
        return
    first = graphs()
    # All layers of a kind are one graph.
    assert 1 <= first <= 2
    for length in range(5, 25, 3):
        row = torch.full((1, length), 21)
        model(input_ids=row, use_cache=False).logits.float().square().mean().backward()
    assert graphs() <= first + 2 and shared == Compiling()


@pytest.mark.extended
@pytest.mark.parametrize(('family', 'backend'), [('sd3', 'inductor'), ('sd15', 'aot_eager')])
def test_gradients_of_denoisers_are_those_of_plain_blocks(family, backend, tiny: Tiny, graphs, monkeypatch) -> None:
    monkeypatch.setattr(compiling, 'BACKEND', backend)
    spec = load_pipeline(tiny(family), Sizing(resolution=(32, 32), num_frames=5))
    frozen = spec.open(torch.device('cpu'))
    (conditions,) = spec.encode_read(frozen, [spec.read(spec.blank_prompt())])
    gradients, shared = [], Compiling()
    for compiles in (False, True):
        denoiser = load_denoiser(spec).train()
        recompute_blocks(denoiser, spec)
        if compiles:
            shared = compile_layers(repeated_blocks(denoiser))
        for rows in (2, 3):
            torch.manual_seed(rows)
            sample = torch.randn(rows, *spec.latent_shape(spec.default_size()))
            # As in a run, which counts the operations of its first batch, but not of what is computed again.
            with Counting() if rows == 2 else nullcontext():
                found = spec.predict(denoiser, sample, torch.full((rows,), 0.5), spec.stack([conditions] * rows), 1.0)
            found.float().square().mean().backward()
            if rows == 2:
                assert graphs() == 0
            gradients.append(gradients_of(denoiser))
    alike(gradients[2], gradients[0])
    alike(gradients[3], gradients[1])
    assert shared == Compiling() and graphs() >= 1


@pytest.mark.extended
def test_without_a_compiler_layers_run_plain(tiny: Tiny, graphs, monkeypatch, caplog) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', ('/no/such/compiler',))
    spec = load_spec(tiny('qwen2', layers=3))
    inputs = model_inputs(spec)
    model = load_model(tiny('qwen2', layers=3), spec.components).train()
    wanted = model(**inputs, use_cache=False).logits
    shared = compile_layers(layers_of(model, spec.component_of, 'torch_compile'))
    with torch._inductor.config.patch(force_disable_caches=True), caplog.at_level(logging.WARNING):
        found = model(**inputs, use_cache=False).logits
    assert torch.equal(found, wanted) and shared.failure is not None
    assert [record.getMessage() for record in caplog.records if record.name == compiling.__name__] == [
        f'torch_compile: layers train without, they cannot be compiled: {shared.failure}'
    ]
