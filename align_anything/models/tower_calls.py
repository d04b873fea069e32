"""How one call of a tower is split into items (images, tiles, videos, audio) and their features put together again.

The base class splits along the first dimension, which serves most towers. A family whose tower lays its media out
otherwise returns another class from `FamilySpec.tower_calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Signature
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError

Item = dict[str, Tensor]
"""The tensors that a tower takes for one item, by argument."""
Features = dict[str, Tensor]
"""What is kept of a tower's output for one item, by name; `hidden_states.-2` is a layer."""
Forward = Callable[..., Any]

TOWERS = ('vision_tower', 'audio_tower')
"""The components that are towers."""
LAYERS = 'hidden_states'
MERGER = 'merger'
PLAIN = (bool, int, float, str, type(None))


def arguments_of(
    signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the arguments of a call of a tower by name, tensors apart."""
    bound = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extras = bound.pop(name, {})
            # Bodies hand on what is meant for the language model, such as the plan of its attention.
            bound |= {key: value for key, value in extras.items() if isinstance(value, Tensor) or is_plain(value)}
    tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in bound.items() if name not in tensors}


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, a truth value, None, or made of such."""
    return all(map(is_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, PLAIN)


class TowerCalls:
    """Calls whose tensors all have one row for each item, in the arguments and in the outputs.

    Picklable. `layers` are the hidden states that the model reads where it asks for them, as its configuration
    counts; nothing else of such an output is kept.
    """

    projectors: tuple[str, ...] = ()
    """Modules inside the tower that belong to the projector: what goes into them is kept, and they run each time."""

    def __init__(self, layers: Sequence[int] = ()) -> None:
        self.layers = tuple(layers)

    def items(self, tensors: Mapping[str, Tensor]) -> list[Item]:
        """Returns the items of a call, in order. Raises ModelError for a call that has no rows of items."""
        lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors.values()}
        if len(lengths) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise ModelError(
                f'feature_cache_dir: this tower takes {shapes}, which cannot be split into single media. Leave '
                'feature_cache_dir out, or override tower_calls() in a FamilySpec (docs/extending.md).'
            )
        return [{name: tensor[row : row + 1] for name, tensor in tensors.items()} for row in range(lengths.pop())]

    def joined(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Returns the arguments of one call for several items."""
        return {name: torch.cat([item[name] for item in items]) for name in items[0]}

    def encode(self, tower: nn.Module, forward: Forward, items: Sequence[Item], others: Any) -> list[Features]:
        """Runs the tower once and returns the features of each item. Raises ModelError for an unknown output."""
        return self.split(self.kept(forward(**self.joined(items), **others)), items)

    def kept(self, outputs: Any) -> Features:
        """Returns those tensors of an output that are kept. Raises ModelError for an output that has no names."""
        if not isinstance(outputs, Mapping):
            raise ModelError(
                f'feature_cache_dir: the tower returns a {type(outputs).__name__} without names. Leave '
                'feature_cache_dir out.'
            )
        states = outputs.get(LAYERS)
        if states is None:
            return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        if not self.layers:
            raise ModelError(
                'feature_cache_dir: the configuration does not say which hidden states of the tower the model reads '
                '(vision_feature_layer). Leave feature_cache_dir out.'
            )
        return {f'{LAYERS}.{layer}': states[layer] for layer in self.layers}

    def split(self, features: Features, items: Sequence[Item]) -> list[Features]:
        """Returns the features of all items as one dictionary for each. Raises ModelError when they do not add up."""
        lengths = self.lengths(items)
        for name, value in features.items():
            if len(value) != sum(lengths):
                raise ModelError(
                    f"feature_cache_dir: the tower's {name} has {len(value)} rows for {len(items)} items of together "
                    f'{sum(lengths)}. Leave feature_cache_dir out.'
                )
        pieces = {name: value.split(lengths) for name, value in features.items()}
        return [{name: pieces[name][number] for name in pieces} for number in range(len(items))]

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Returns how many rows of the output each item has."""
        return [1] * len(items)

    def outputs(self, tower: nn.Module, features: Sequence[Features]) -> TowerOutput:
        """Returns what a call for the items with these features gives. Gradients flow into `projectors` only."""
        return self.together(features)

    def compute(self, tower: nn.Module, forward: Forward, items: Sequence[Item], others: Any) -> list[Features]:
        """As `encode`, but the features of each item are those behind the `projectors`, which `together` takes."""
        return self.encode(tower, forward, items, others)

    def together(self, features: Sequence[Features]) -> TowerOutput:
        """Returns the output of one call for several items from what was computed of each."""
        output = TowerOutput()
        for name, value in self.joined(features).items():
            field, _, layer = name.partition('.')
            if layer:
                output.setdefault(field, TowerOutput())[int(layer)] = value
            else:
                output[field] = value
        return output


class TowerOutput(dict):
    """An output with names, as transformers' are; reading what was not kept raises ModelError.

    A dictionary, because DeepSpeed looks for tensors in dictionaries.
    """

    def __missing__(self, key: Any) -> Any:
        raise ModelError(
            f"feature_cache_dir: the model reads '{key}' of a tower's output, of which only {list(self)} is kept. "
            'Leave feature_cache_dir out.'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class PatchCalls(TowerCalls):
    """Calls of towers that take the patches of all media in one list, with the grid of each: Qwen-VL and its kin.

    What is kept goes into the mergers, so that these may train.
    """

    def __init__(self, deepstack: str | None = None, windows: bool = False) -> None:
        """`deepstack` names the list of mergers of inner layers; `windows`: patches are sorted by window inside."""
        super().__init__()
        self.deepstack, self.windows = deepstack, windows
        self.projectors = ('merger',) if deepstack is None else ('merger', deepstack)

    def items(self, tensors: Mapping[str, Tensor]) -> list[Item]:
        """Returns the items of a call: `hidden_states` `(patches, values)` and `grid_thw` `(1, 3)` of each."""
        grids = tensors['grid_thw']
        patches = tensors['hidden_states'].split(grids.prod(-1).tolist())
        return [{'hidden_states': part, 'grid_thw': grids[row : row + 1]} for row, part in enumerate(patches)]

    def encode(self, tower: nn.Module, forward: Forward, items: Sequence[Item], others: Any) -> list[Features]:
        """Runs the tower once and returns, for each item, what went into each merger, `(patches, size)`."""
        features: Features = {}

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                features[name] = inputs[0]

            return hook

        mergers = self.mergers(tower)
        hooks = [merger.register_forward_pre_hook(note(name)) for name, merger in mergers.items()]
        joined = self.joined(items)
        try:
            forward(**joined, **others)
        finally:
            for hook in hooks:
                hook.remove()
        if self.windows:
            from transformers.vision_utils import get_vision_window_index

            sizes = tower.spatial_merge_size, tower.window_size, tower.patch_size
            order = torch.argsort(get_vision_window_index(joined['grid_thw'], *sizes)[0])
            # A merger sees only patches that stand side by side, so it may see them in any order of tokens.
            unit = tower.spatial_merge_size**2
            features = {
                name: value.unflatten(0, (-1, unit))[order.to(value.device)].flatten(0, 1)
                for name, value in features.items()
            }
        return self.split(features, items)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Returns the patches of each item."""
        return [len(item['hidden_states']) for item in items]

    def outputs(self, tower: nn.Module, features: Sequence[Features]) -> TowerOutput:
        """Returns the features of all items through the mergers, with gradients."""
        joined = self.joined(features)
        return self.together([{name: merger(joined[name]) for name, merger in self.mergers(tower).items()}])

    def compute(self, tower: nn.Module, forward: Forward, items: Sequence[Item], others: Any) -> list[Features]:
        """Runs the tower once and returns, for each item, what came out of each merger, `(tokens, size)`."""
        output = forward(**self.joined(items), **others)
        inner = [] if self.deepstack is None else output['deepstack_features']
        features = {MERGER: output['pooler_output'], **{f'deepstack.{at}': own for at, own in enumerate(inner)}}
        patches = sum(self.lengths(items))
        tokens = [length * len(features[MERGER]) // patches for length in self.lengths(items)]
        pieces = {name: value.split(tokens) for name, value in features.items()}
        return [{name: pieces[name][number] for name in pieces} for number in range(len(items))]

    def together(self, features: Sequence[Features]) -> TowerOutput:
        """Returns the output of one call from what came out of the mergers, of each item or of all in one."""
        merged = self.joined(features)
        output = TowerOutput(pooler_output=merged.pop(MERGER))
        if self.deepstack is not None:
            output.deepstack_features = list(merged.values())
        return output

    def mergers(self, tower: nn.Module) -> dict[str, nn.Module]:
        """Returns the mergers of a tower by name, that of the last layer first."""
        found = {MERGER: tower.get_submodule('merger')}
        if self.deepstack is not None:
            found |= {
                f'deepstack.{name}': module for name, module in tower.get_submodule(self.deepstack).named_children()
            }
        return found


class AudioCalls(TowerCalls):
    """Calls of towers that take frames of all audio clips in one list, with the length of each: Qwen's Omni models."""

    def __init__(self, tokens: Callable[[int], int]) -> None:
        """`tokens` gives the rows of the output for a number of frames."""
        super().__init__()
        self.tokens = tokens

    def items(self, tensors: Mapping[str, Tensor]) -> list[Item]:
        """Returns the items of a call: `input_features` `(bins, frames)` of each, and its lengths `(1,)`."""
        frames = tensors['input_features'].split(tensors['feature_lens'].tolist(), dim=1)
        lengths = {name: tensor for name, tensor in tensors.items() if name != 'input_features'}
        return [
            {'input_features': part, **{name: tensor[row : row + 1] for name, tensor in lengths.items()}}
            for row, part in enumerate(frames)
        ]

    def joined(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Returns the arguments of one call, or the features of several items as one."""
        along = {'input_features': 1}
        return {name: torch.cat([item[name] for item in items], along.get(name, 0)) for name in items[0]}

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Returns the rows of the output that each audio clip has."""
        return [self.tokens(item['input_features'].shape[1]) for item in items]
