"""How the responses of a step would be generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align_anything.models.work import Sizes, Span, Work
from align_anything.trainers.runs.planning.subject import GIB, HALF, Asked
from align_anything.trainers.runs.verdict import SHARE

READING = 0.7
"""Share of the bandwidth of a device's memory that decoding reaches."""


@dataclass(frozen=True)
class Rollouts:
    """How responses would be generated.

    Attributes:
        parallel: devices that share a copy of the model.
        together: responses of a copy at once.
        shared: seconds of generation on all devices, which then update.
        apart: devices that generate while the others update, and the seconds of a step so; None where that is slower.
    """

    parallel: int
    together: int
    shared: float
    apart: tuple[int, float] | None = None


def token_rollouts(
    config: Any, work: Work, weights: int, prompt: int, asked: Asked, updating: float | None
) -> Rollouts:
    """Returns how tokens would be generated behind prompts of so many, media included.

    `work` is that of a frozen model of so many `weights`. `updating` are the seconds of the updates of a step; None
    where they do not fit.
    """
    capacity = SHARE * asked.gpu_memory * GIB
    parallel = 1
    while HALF * weights > 0.8 * parallel * capacity and parallel < asked.gpus:
        parallel *= 2
    length = prompt + asked.response
    of_token = kept_bytes(config)
    together = max(1, int((parallel * capacity - HALF * weights) // (of_token * length)))

    def seconds(devices: int) -> float:
        copies = max(1, devices // parallel)
        responses = -(-asked.rows * asked.generations // copies)
        waves = -(-responses // together)
        at_once = -(-responses // waves)
        read = HALF * weights + at_once * of_token * (prompt + asked.response / 2)
        best = asked.operations * parallel
        one = work.total(Sizes([Span(1, length)], scored=float(config.get_text_config().vocab_size))).forward
        token = max(read / (READING * asked.accelerator.bandwidth * 1e9 * parallel), at_once * one / best)
        # A prompt is read once for all of its responses.
        prefill = work.total(Sizes([Span(prompt)])).forward * -(-asked.rows // copies) / best
        return waves * asked.response * token + prefill

    shared = seconds(asked.gpus)
    apart = None
    if updating is not None:
        for devices in range(parallel, asked.gpus, parallel):
            # Updates on fewer devices take longer in proportion.
            took = max(seconds(devices), updating * asked.gpus / (asked.gpus - devices))
            if took < (shared + updating if apart is None else apart[1]):
                apart = devices, took
    return Rollouts(parallel, together, shared, apart)


def kept_bytes(config: Any) -> float:
    """Returns the bytes that a model keeps of each token while it generates, in half precision."""
    text = config.get_text_config().to_dict()
    layers = text['num_hidden_layers']
    if text.get('kv_lora_rank'):
        return float(HALF * layers * (text['kv_lora_rank'] + text['qk_rope_head_dim']))
    heads = text.get('num_attention_heads')
    size = text.get('head_dim') or text['hidden_size'] // heads
    return float(2 * HALF * layers * (text.get('num_key_value_heads') or heads) * size)
