"""Responses with media in vLLM: each request brings its grammar, and each step is sampled by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from align_anything.rollouts.restricted import Restricted, Restriction

ARGUMENT = 'grammar'
"""What a request has it under among its `extra_args`."""
LOGPROBS_MODE = 'processed_logits'
"""The processor makes log-probabilities of logits, so that they are returned as they are: vLLM would take them among
what the grammar, top-k and top-p leave, which is less than what the trainer scores a token among."""


def arguments_of(restriction: Restriction) -> dict[str, Any]:
    """Returns the arguments of `SamplingParams` that sample by a restriction, and by nothing else."""
    return {'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'extra_args': {ARGUMENT: restriction.to_json()}}


def grammar_processor() -> type:
    """Returns the class that vLLM makes its logits processor of."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class GrammarProcessor(AdapterLogitsProcessor):
        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            _read(sampling_params)

        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Callable[[Sequence[int], Tensor], Tensor]:
            return _step(_read(params))

    return GrammarProcessor


def _read(params: Any) -> Restriction:
    values = (params.extra_args or {}).get(ARGUMENT)
    if values is None:
        raise ValueError(f'a request to a model that writes media needs a grammar (extra_args.{ARGUMENT})')
    return Restriction.from_json(values)


def _step(restriction: Restriction) -> Callable[[Sequence[int], Tensor], Tensor]:
    """What samples the next id of one request, behind the ids of its response so far."""
    restricted, state, seen = Restricted(restriction), restriction.grammar.start(), 0

    def step(output_ids: Sequence[int], logits: Tensor) -> Tensor:
        nonlocal seen
        for token in output_ids[seen:]:
            state.advance(token)
        seen = len(output_ids)
        _, left = restricted(logits[None], [state])
        return left[0]

    return step
