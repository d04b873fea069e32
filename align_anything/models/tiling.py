"""MLPs that compute a row in tiles, and each again for its gradient: of a long row one tile is there at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align_anything.core.errors import ModelError
from align_anything.models.adapter import bare_model

GATED = ({'gate_proj', 'up_proj', 'down_proj'}, {'gate_up_proj', 'down_proj'})
"""What MLPs are made of that compute each token by itself: SwiGLU and its like, whatever the activation."""


def tile_mlps(model: nn.Module, component_of: Callable[[str], str], tiles: int) -> None:
    """Makes the MLPs of the language model compute the tokens of a row in so many tiles, one after another.

    `component_of` says of a name of a parameter which component it belongs to. Raises ModelError for MLPs of another
    form, of which it is not known that a token does not depend on others.
    """
    for mlp in gated_mlps(model, component_of):
        mlp.forward = partial(_in_tiles, mlp.forward, tiles)


def gated_mlps(model: nn.Module, component_of: Callable[[str], str]) -> list[nn.Module]:
    """Returns the MLP of each layer of the language model. Raises ModelError for MLPs of another form than a gated."""
    found = []
    for number, layer in enumerate(layers_of(bare_model(model), component_of, 'mlp_tiles')):
        mlp = dict(layer.named_children()).get('mlp')
        if mlp is None or not any(names <= {name for name, _ in mlp.named_children()} for names in GATED):
            kind = 'no module named mlp' if mlp is None else f'a {type(mlp).__name__}'
            raise ModelError(
                f'train_cfgs.mlp_tiles: layer {number} of {type(bare_model(model)).__name__} has {kind}, and only '
                'gated MLPs (gate_proj, up_proj, down_proj) are computed in tiles; a mixture of experts is not. Set it '
                'to 1.'
            )
        found.append(mlp)
    return found


def has_tiles(model: nn.Module) -> bool:
    """Whether MLPs of a model compute rows in tiles."""
    forwards = (vars(module).get('forward') for module in model.modules())
    return any(isinstance(forward, partial) and forward.func is _in_tiles for forward in forwards)


def layers_of(model: nn.Module, component_of: Callable[[str], str], setting: str) -> nn.ModuleList:
    """Returns the layers of the language model, for a setting of `train_cfgs`.

    Raises ModelError where it is not known which they are.
    """
    number = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number and component_of(f'{name}.0') == 'language_model'
    ]
    if len(found) != 1:
        raise ModelError(
            f'{type(model).__name__} has {len(found)} lists of {number} layers in its language model, and it is not '
            f'known which of them train_cfgs.{setting} should be in force for: leave it out.'
        )
    return found[0]


def _in_tiles(forward: Callable[[Tensor], Tensor], tiles: int, states: Tensor) -> Tensor:
    if states.shape[-2] == 1:
        return forward(states)  # a token that is generated
    # Not DeepSpeed's TiledMLP, whose weights get no gradient where their input needs none (frozen layers below an
    # adapter), and which makes fewer tiles of short rows: under ZeRO-3 all ranks have to gather equally often. An empty
    # tile does.
    cut = torch.tensor_split(states, tiles, dim=-2)
    if not torch.is_grad_enabled():
        return torch.cat([forward(tile) for tile in cut], dim=-2)
    return torch.cat([checkpoint(forward, tile, use_reentrant=False) for tile in cut], dim=-2)
