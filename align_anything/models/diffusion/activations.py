"""What a denoiser keeps for its backward pass and computes, counted from a pass in which no number is computed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode

from align_anything.core.counting import Counting
from align_anything.models.diffusion.library import component_class, pipeline_class, quiet
from align_anything.models.diffusion.opening import skeleton
from align_anything.models.diffusion.spec import DiffusionSpec

LEVEL = 0.5


@dataclass(frozen=True)
class Pass:
    """What a forward pass takes.

    Attributes:
        kept: bytes that wait for the backward pass.
        products, attention: floating point operations in matrices and convolutions, and of attention.
    """

    kept: float
    products: float
    attention: float


def kept_for_backward(spec: DiffusionSpec, denoiser: nn.Module, rows: int, dtype: torch.dtype) -> float | None:
    """Returns the bytes that a denoiser on the meta device keeps of `rows` samples, see `forward_pass`."""
    found = forward_pass(spec, denoiser, rows, dtype)
    return None if found is None else found.kept


def forward_pass(spec: DiffusionSpec, denoiser: nn.Module, rows: int, dtype: torch.dtype) -> Pass | None:
    """Returns what a pass of a denoiser on the meta device over `rows` samples of the default size takes.

    It is called as in training, on tensors that have a shape and a place and no content, so that neither weights nor
    memory is needed. Where a family looks at numbers to know a shape (prompts cut to their length, for instance), only
    what networks compute is without content, and what tokenizers make is as it is. Returns None where that does not do.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    frozen, model = _without_weights(spec, mode), deepcopy(denoiser).train()
    with mode:
        # On the CPU, where attention keeps what it does on a GPU.
        model.to_empty(device='cpu')
        for module in model.modules():
            # What is neither a weight nor a buffer stays on the meta device otherwise.
            for name, value in [*vars(module).items()]:
                if torch.is_tensor(value) and value.is_meta:
                    setattr(module, name, torch.empty_like(value, device='cpu'))
        sample = torch.empty(rows, *spec.latent_shape(spec.default_size()), dtype=dtype)
    for within in (mode, _MasksAsNumbers()):
        try:
            with within:
                return _called(spec, frozen, model, sample)
        except (DataDependentOutputException, DynamicOutputShapeException):
            continue
    return None


def _called(spec: DiffusionSpec, frozen: Any, model: nn.Module, sample: Tensor) -> Pass:
    rows, counted = len(sample), {}
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The storage beside its size, or its address would be another's soon.
            counted[storage._cdata] = storage, storage.nbytes()
        return tensor

    conditions = spec.stack([_conditions(spec, frozen)] * rows)
    given = {name: value.to(sample.dtype) if value.is_floating_point() else value for name, value in conditions.items()}
    with Counting() as counting, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        spec.predict(model, sample, torch.full((rows,), LEVEL), given, 1.0)
    return Pass(float(sum(size for _, size in counted.values())), counting.products, counting.attention)


class _MasksAsNumbers(TorchFunctionMode):
    """Takes what a mask with content chooses by its numbers: of something without content that has a shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and torch.is_tensor(args[1]) and args[1].dtype == torch.bool:
            args = args[0], args[1].nonzero(as_tuple=True)
        return func(*args, **(kwargs or {}))


def _conditions(spec: DiffusionSpec, frozen: Any) -> Mapping[str, Tensor]:
    prompt = spec.blank_prompt()
    (conditions,) = spec.encode_read(frozen, [spec.read(prompt)])
    return conditions | spec.encode_pictures(frozen, prompt) if prompt.pictures else conditions


def _without_weights(spec: DiffusionSpec, mode: FakeTensorMode) -> Any:
    """The pipeline, its networks built from their configurations, in `mode`."""
    index = spec.index
    given: dict[str, Any] = {
        name: None for name, origin in index.items() if isinstance(origin, list) and origin[0] is None
    }
    for name in {*spec.configs} & {*index} - {*given}:
        if issubclass(component_class(index[name], spec.folder), nn.Module):
            with mode:
                given[name] = skeleton(index, spec.configs, spec.folder, name).eval().requires_grad_(False)
    with quiet():
        kind = pipeline_class(index['_class_name'], spec.folder)
        pipeline = kind.from_pretrained(str(spec.folder), local_files_only=True, **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
