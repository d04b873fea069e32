"""What a plan is asked for, what it chooses, and what it has to know of a kind of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from align_anything.core.flops import Accelerator, Flops
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing

HALF = 2
"""Bytes of a number in bfloat16."""
GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for.

    Attributes:
        gpus, gpu_memory: how many devices, and the GiB of each.
        accelerator: what one can do.
        prompt, response: tokens of each; media of prompts come on top.
        images, image_size: pictures of a prompt, and the pixels of a side of each, and of what a denoiser writes; None
            for 448, or what the denoiser was trained at.
        frames: of a video, which is in the prompt, or written; none for 0.
        seconds: of a sound, likewise.
        rows: prompts of an optimizer step, over all devices.
        generations: responses to a prompt, where they are generated.
        steps: denoising steps of a rollout.
        use_lora: whether adapters train, `use_bnb` over weights in 4 bits.
        ema: whether an average of the weights is kept.
        efficiency: share of what the device can do at best that training reaches, recomputation counted.
        network: bytes a second of a device to other machines, 10⁹ of them.
    """

    gpus: int
    gpu_memory: float
    accelerator: Accelerator
    prompt: int = 512
    response: int = 512
    images: int = 0
    image_size: int | None = None
    frames: int = 0
    seconds: float = 0.0
    rows: int = 64
    generations: int = 8
    steps: int = 10
    use_lora: bool = False
    use_bnb: bool = False
    ema: bool = False
    efficiency: float = 0.5
    network: float = 50.0

    @property
    def operations(self) -> float:
        """Floating point operations a second of a device."""
        return self.efficiency * self.accelerator.tflops * 1e12


@dataclass(frozen=True)
class Settings:
    """Settings that a plan chooses.

    Attributes:
        recomputes: which layers are computed again, None for none.
        optimizer: `adamw_8bit`, or empty for the one of the device.
        ema_on_cpu: whether the average is in host memory.
        sequence_parallel: ranks that share a row.
        tiles: pieces of a row that MLPs are computed in.
    """

    recomputes: Checkpointing | None = ALL_LAYERS
    optimizer: str = ''
    ema_on_cpu: bool = False
    sequence_parallel: int = 1
    tiles: int = 1

    @property
    def given(self) -> dict[str, object]:
        """The settings of a run that differ from what it has by default."""
        how = self.recomputes
        chosen = {
            'gradient_checkpointing': (how is not None, True),
            'gradient_checkpointing_every_n_layers': (1 if how is None else how.every, 1),
            'activation_offloading': (how is not None and how.offload, False),
            'optimizer': (self.optimizer, ''),
            'ema_on_cpu': (self.ema_on_cpu, False),
            'sequence_parallel_size': (self.sequence_parallel, 1),
            'mlp_tiles': (self.tiles, 1),
        }
        return {name: value for name, (value, usual) in chosen.items() if value != usual}


@dataclass(frozen=True)
class Subject:
    """A model that is planned with, and what one prompt of a run takes of it.

    Attributes:
        model: as it trains, without weights; `plain` is a frozen copy.
        spared: bytes of weights of `model` that are not there because they are quantised.
        layers: how often activations can be computed again: all ways that there are, the quickest first.
        sharing: numbers of ranks that can share a row, beside one.
        tiles: whether MLPs can be computed in tiles.
        row_kept: bytes that a row of a micro-batch keeps for its backward pass under some settings.
        row_inputs: bytes of it that wait in host memory where `activation_offloading` says so.
        passes: operations for a prompt and its responses in a step, the update and what scores beside it.
        exchanged: bytes that ranks which share a row send each other for one prompt.
        units: how many units of `unit` there are to a prompt, `tokens` or `samples`.
        forward: operations of a pass over one sample, of denoisers.
    """

    model: nn.Module
    plain: nn.Module
    spared: float
    layers: Sequence[Checkpointing | None]
    row_kept: Callable[[Settings], float]
    row_inputs: float
    passes: Callable[[Settings], Flops]
    units: int
    unit: str
    forward: float = 0.0
    tiles: bool = False
    sharing: Sequence[int] = ()
    exchanged: Callable[[Settings], float] = lambda settings: 0.0
