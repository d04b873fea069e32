"""Two denoisers in one: one for high noise, one for low."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.several import narrowed


class Experts(nn.Module):
    """Denoisers of which each predicts the samples of its own noise levels; called as one of them.

    In training both are called each time, on one row to no effect where no sample is theirs: ranks draw levels of their
    own, and would wait for each other where the parameters of an expert are partitioned.
    """

    def __init__(self, high: tuple[str, nn.Module], low: tuple[str, nn.Module], boundary: float) -> None:
        """Takes the names and networks of both, and the lowest timestep of the first."""
        super().__init__()
        self.names = (high[0], low[0])
        self.boundary = boundary
        for name, network in (high, low):
            self.add_module(name, network)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Returns what the expert of each row predicts, `(batch, …)`; `timestep` is `(batch,)` or `(batch, tokens)`."""
        is_high = timestep.view(len(timestep), -1)[:, 0] >= self.boundary
        predicted, idle = torch.zeros_like(hidden_states), torch.zeros_like(hidden_states[:1])
        for name, chosen in zip(self.names, (is_high, ~is_high), strict=True):
            rows = chosen.nonzero().flatten()
            if not len(rows) and not self.training:
                continue
            used = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device)
            with narrowed(used):
                output = self.get_submodule(name)(
                    hidden_states=hidden_states[used],
                    timestep=timestep[used],
                    encoder_hidden_states=encoder_hidden_states[used],
                    return_dict=False,
                )[0]
            if len(rows):
                predicted = predicted.index_copy(0, rows, output.to(predicted.dtype))
            else:
                idle = idle + 0 * output
        return (predicted + idle,)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        """Makes the backward pass of both compute each block anew."""
        for name in self.names:
            self.get_submodule(name).enable_gradient_checkpointing(gradient_checkpointing_func)
