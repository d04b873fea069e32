"""How much a denoiser keeps for its backward pass, counted from a pass in which no number is computed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from align_anything.models.diffusion.library import component_class, pipeline_class, quiet
from align_anything.models.diffusion.opening import skeleton
from align_anything.models.diffusion.spec import DiffusionSpec

LEVEL = 0.5


def kept_for_backward(spec: DiffusionSpec, denoiser: nn.Module, rows: int, dtype: torch.dtype) -> float | None:
    """Returns the bytes that a denoiser on the meta device keeps of `rows` samples of the default size.

    It is called as in training, on tensors that have a shape and a place and no content, so that neither weights nor
    memory is needed. Returns None for a family that looks at numbers to know a shape (prompts cut to their length, for
    instance): it cannot be called so.
    """
    mode, counted = FakeTensorMode(allow_non_fake_inputs=True), {}
    frozen, model, own = _without_weights(spec, mode), deepcopy(denoiser).train(), set()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The storage beside its size, or its address would be another's soon.
            counted[storage._cdata] = storage, storage.nbytes()
        return tensor

    try:
        with mode:
            conditions = spec.stack([_conditions(spec, frozen)] * rows)
            # On the CPU, where attention keeps what it does on a GPU.
            model.to_empty(device='cpu')
            own |= {weight.untyped_storage()._cdata for weight in model.parameters()}
            sample = torch.empty(rows, *spec.latent_shape(spec.default_size()), dtype=dtype)
            given = {
                name: value.to(dtype) if value.is_floating_point() else value for name, value in conditions.items()
            }
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                spec.predict(model, sample, torch.full((rows,), LEVEL), given, 1.0)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    return float(sum(size for _, size in counted.values()))


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
