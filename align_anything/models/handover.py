"""The weights of a model in training, for an engine that generates with a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from align_anything.models.adapter import bare_model
from align_anything.models.export import merged_state, second_names
from align_anything.models.quantization import dequantised, quantised_layers

Gather = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Gathers tensors that ranks may hold in shards."""


def handed_over(model: nn.Module, gather: Gather) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of the plain model by its name in checkpoints, adapters added in, a few at a time.

    The model is not changed. `gather` returns the whole of the tensors it is given, those that it has not to gather as
    they lie. Every rank goes through all.
    """
    plain = bare_model(model)
    quantised = quantised_layers(model)
    tied = {*plain.all_tied_weights_keys, *second_names(plain)}
    for group in _groups(model, quantised).values():
        state = {name: tensor.detach() for name, tensor in gather(group).items()}
        if quantised:
            state = dequantised(model, state)
        if plain is not model:
            state = merged_state(model, state)
        named = {name: tensor for name, tensor in state.items() if name not in tied}
        yield from revert_weight_conversion(plain, named).items()


def _groups(model: nn.Module, quantised: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The state of a model by what is needed together: a layer with its adapter or its scales, the rest one by one."""
    live = model.state_dict(keep_vars=True)
    adapted = {name.partition('.lora_')[0] for name in live if '.lora_' in name}
    layers = sorted(adapted | {f'{name}.weight' for name in quantised}, key=len)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in live.items():
        # The shortest: scales of a layer under an adapter go with the adapter.
        owner = next((layer for layer in layers if name == layer or name.startswith(f'{layer}.')), name)
        groups.setdefault(owner, {})[name] = tensor
    return groups
