"""Responses with media in vLLM: each request brings its grammar, and each step is sampled by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from align_anything.rollouts.grammar import State
from align_anything.rollouts.restricted import Restricted, Restriction

ARGUMENT = 'grammar'
"""What a request has it under among its `extra_args`."""
LOGPROBS_MODE = 'processed_logits'
"""The processor makes log-probabilities of logits, so that they are returned as they are: vLLM would take them among
what the grammar, top-k and top-p leave, which is less than what the trainer scores a token among."""


def arguments_of(restriction: Restriction) -> dict[str, Any]:
    """Returns the arguments of `SamplingParams` that sample by a restriction, and by nothing else."""
    return {'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'extra_args': {ARGUMENT: restriction.to_json()}}


class Row:
    """A response that is being generated.

    Args:
        restriction: what may be sampled where.
        ids: those of the response, to which vLLM adds each that it samples.
    """

    def __init__(self, restriction: Restriction, ids: Sequence[int]) -> None:
        self.restricted = _restricted(restriction)
        self._ids, self._seen, self._state = ids, 0, restriction.grammar.start()

    def state(self) -> State:
        """Returns where in the response one is by now."""
        for token in self._ids[self._seen :]:
            self._state.advance(token)
        self._seen = len(self._ids)
        return self._state


def grammar_processor() -> type:
    """Returns the class that vLLM makes its logits processor of."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class GrammarProcessor(LogitsProcessor):
        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            _read(sampling_params)

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self._rows: dict[int, Row] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(self._rows, batch_update, lambda params, prompt, ids: Row(_read(params), ids))

        def apply(self, logits: Tensor) -> Tensor:
            together: dict[Restricted, list[int]] = {}
            for number, row in self._rows.items():
                together.setdefault(row.restricted, []).append(number)
            for restricted, numbers in together.items():
                states = [self._rows[number].state() for number in numbers]
                _, left = restricted(logits[numbers], states)
                logits[numbers] = left
            return logits

    return GrammarProcessor


def _read(params: Any) -> Restriction:
    values = (params.extra_args or {}).get(ARGUMENT)
    if values is None:
        raise ValueError(f'a request to a model that writes media needs a grammar (extra_args.{ARGUMENT})')
    return Restriction.from_json(values)


# Requests of one rollout have the same, and its masks.
_restricted = lru_cache(maxsize=8)(Restricted)
