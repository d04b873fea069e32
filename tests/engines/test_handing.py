"""Weights that rank 0 alone reads reach every rank to the bit, and only one rank ever holds all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align_anything.core.errors import ModelError
from align_anything.engines.fsdp_config import SECTION, build_fsdp_config
from align_anything.engines.handing import Handing, builds_without_weights
from align_anything.engines.sharding import shard
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.testing.tiny import KINDS
from tests.harness.ranks import run_ranks

CPU = torch.device('cpu')
FSDP = build_fsdp_config(precision='fp32', max_grad_norm=1.0, reshard_after_forward=True, cpu_offload=False)
ON_META = {'device_map': {'': 'meta'}}


class Rotated(nn.Module):
    """Two names for one weight, buffers that are saved and not, and a tensor that is neither."""

    def __init__(self, device: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        with torch.device(device):
            self.first = nn.Linear(3, 3, bias=False, dtype=torch.bfloat16)
            self.second = nn.Linear(3, 3)
            self.register_buffer('kept', torch.rand(2))
            self.register_buffer('angles', torch.rand(4), persistent=False)
            self.seen = torch.randint(0, 9, ())
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight = self.first.weight
        self.second.bias.requires_grad_(False)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        f'{name}.{key}': value
        for name, module in model.named_modules()
        for store in (module._parameters, module._buffers, vars(module))
        for key, value in store.items()
        if isinstance(value, Tensor)
    }


def test_all_of_a_model_is_handed() -> None:
    def body(rank: int) -> bool:
        expected, model = Rotated('cpu', 1), Rotated('meta' if builds_without_weights(FSDP) else 'cpu', 1 + rank)
        assert any(tensor.is_meta for tensor in tensors(model).values()) == (rank > 0)
        handing = Handing(model, CPU)
        for module in (model.second, model):
            handing.hand(module)
        assert model.head.weight is model.first.weight and 'angles' not in model.state_dict()
        found = tensors(model)
        for name, tensor in tensors(expected).items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
            assert found[name].requires_grad == tensor.requires_grad, name
        return True

    assert run_ranks(body) == [True, True]


def test_what_every_rank_has_is_left_alone() -> None:
    def body(rank: int) -> float:
        model = Rotated('cpu', rank)
        handing = Handing(model, CPU)
        handing.hand(model)
        return float(model.kept[0])

    first, second = run_ranks(body)
    assert first != second and not builds_without_weights(FSDP) and not builds_without_weights({})


def test_other_models_are_refused_by_all_ranks() -> None:
    def body(rank: int) -> None:
        model = Rotated('meta' if rank else 'cpu', 0)
        model.second.weight.requires_grad_(not rank)
        with pytest.raises(ModelError, match="differ in .*'second', 'weight'"):
            Handing(model, CPU)

    run_ranks(body)


@pytest.mark.extended
@pytest.mark.parametrize('family', KINDS)
@pytest.mark.parametrize('scores', [False, True], ids=['tokens', 'scores'])
def test_every_family_is_handed_to_the_bit(family: str, scores: bool, tiny: Callable[..., Path]) -> None:
    kind: Any = AnyModelForScore if scores else AnyModel
    expected = kind.from_pretrained(tiny(family), dtype=torch.bfloat16)

    def body(rank: int) -> bool:
        model = kind.from_pretrained(tiny(family), dtype=torch.bfloat16, **(ON_META if rank else {}))
        assert all(tensor.is_meta for tensor in tensors(model).values()) == (rank > 0)
        shard(model, FSDP[SECTION], CPU)
        found = tensors(model)
        for name, tensor in tensors(expected).items():
            if tensor.is_meta:
                continue
            own = found[name].full_tensor() if isinstance(found[name], DTensor) else found[name]
            assert torch.equal(own, tensor.to(own.dtype)), name
        return True

    assert run_ranks(body) == [True, True]


@pytest.mark.extended
def test_one_rank_alone_holds_all_of_a_model(tiny: Callable[..., Path]) -> None:
    from scripts.bench.measure import peak, reset_peak, resident

    folder = tiny('llama', layers=24, hidden=512)
    whole = sum(file.stat().st_size for file in folder.glob('*.safetensors'))

    def body(rank: int) -> float:
        before = resident()
        reset_peak()
        # As a run in another type than the checkpoint's, whose files cannot be mapped in the place of memory.
        model = AnyModel.from_pretrained(folder, dtype=torch.float64, **(ON_META if rank else {}))
        shard(model, FSDP[SECTION], CPU)
        return (peak() - before) / (2 * whole)

    first, second = run_ranks(body)
    # A half, and what Python takes.
    assert first > 0.9 and second < 0.7, (first, second)
