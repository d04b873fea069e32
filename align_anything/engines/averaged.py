"""An average over time of what an engine trains, which can take its place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from align_anything.core.distributed import is_main
from align_anything.engines.base import Engine

UPDATES = 'updates'


class AveragedWeights:
    """Follows the trained parameters of `engine`: those of the adapter under LoRA, else all.

    Each rank holds of the average what it holds of the parameters, in float32: all of it below ZeRO-3, its partition
    with it and under FSDP2, so that nothing is gathered but to be saved. It lies on `device`, that of the parameters
    where none is given; while it is in place, what trains waits there.

    Attributes:
        updates: how often it has followed.
    """

    def __init__(self, engine: Engine, device: torch.device | None = None) -> None:
        """Begins with the parameters as they are."""
        self._engine = engine
        self._device = device
        self._parameters = {name: own for name, own in engine.policy.model.named_parameters() if own.requires_grad}
        self._average = {name: self._aside(own).float() for name, own in self._parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Becomes `decay` times itself, and the rest of the parameters as they are."""
        for name, parameter in self._parameters.items():
            average = self._average[name]
            average.lerp_(self._engine.share_of(parameter).to(average.device, torch.float32), 1 - decay)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the model as long as its context lasts. Every rank enters it, outside of a gather."""
        trained = {name: self._aside(parameter) for name, parameter in self._parameters.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(trained)

    def save_state(self, file: Path) -> None:
        """Writes it to a file that any number of ranks can load. Every rank calls it."""
        gathered = {}
        for name, parameter in self._parameters.items():
            share = self._average[name].to(self._engine.share_of(parameter).device)
            own = self._engine.joined(parameter, share)
            if is_main():
                gathered[name] = own.cpu().contiguous()
        if is_main():
            save_file(gathered, file, metadata={UPDATES: str(self.updates)})

    def load_state(self, file: Path) -> None:
        """Restores what `save_state` wrote."""
        with safe_open(file, 'pt') as stored:
            self.updates = int(stored.metadata()[UPDATES])
            for name, parameter in self._parameters.items():
                self._average[name].copy_(self._engine.share_in(parameter, stored.get_tensor(name)))

    def _aside(self, parameter: nn.Parameter) -> Tensor:
        share = self._engine.share_of(parameter).detach()
        return share.to(share.device if self._device is None else self._device, copy=True)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        with self._engine.writing():
            for name, parameter in self._parameters.items():
                self._engine.share_of(parameter).copy_(values[name])


def warmed_up(decay: float, updates: int) -> float:
    """Returns the decay after so many updates: `(1 + k) / (10 + k)` until that is more, as everybody has it."""
    return min(decay, (1 + updates) / (10 + updates))
