"""What a run asks of FSDP2, in the place of a DeepSpeed configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECTION = 'fsdp'
"""Holds the options below in the configuration of an engine; that of DeepSpeed has none."""


def build_fsdp_config(
    *, precision: str, max_grad_norm: float, reshard_after_forward: bool, cpu_offload: bool, accumulates: bool = False
) -> dict[str, Any]:
    """Returns the configuration of an engine on FSDP2. `precision` is `bf16` or `fp32`.

    `accumulates` says whether steps have several micro-batches, which only an estimate of memory reads.
    """
    options = {'precision': precision, 'reshard_after_forward': reshard_after_forward, 'cpu_offload': cpu_offload}
    return {SECTION: {**options, 'accumulates': accumulates}, 'gradient_clipping': max_grad_norm}


def is_fsdp(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of an engine is one of FSDP2."""
    return SECTION in config


def accumulates_whole_gradients(config: Mapping[str, Any]) -> bool:
    """Whether each rank holds the gradient of all weights, in float32, until the last micro-batch of a step."""
    return bool(config.get(SECTION, {}).get('accumulates'))


def offloads_to_cpu(config: Mapping[str, Any]) -> bool:
    """Whether FSDP2 keeps the shards of weights, gradients and optimizer states in host memory."""
    return bool(config.get(SECTION, {}).get('cpu_offload'))
