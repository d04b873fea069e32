"""What each worker of an engine of several devices does with weights: vLLM adds these methods to its own."""

from __future__ import annotations

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from align_anything.rollouts.vllm_engine import repack_heads
from align_anything.rollouts.weight_group import Shapes, join_group, receive


class TakesWeights:
    """Weights come in chunks, to every worker of every copy in full; each keeps its part of them when all are there."""

    rank: int
    vllm_config: Any
    _chunks: dict[str, Tensor]
    _weight_group: Any

    def join_weight_group(self, host: str, port: int, rank: int, size: int, backend: str, seconds: float) -> None:
        """Joins the group of the rank that feeds this server, whose first worker is number `rank` in it."""
        parallel = self.vllm_config.parallel_config
        own = rank + parallel.data_parallel_index * parallel.world_size + self.rank
        self._weight_group = join_group(host, port, own, size, backend, seconds)

    def begin_weights(self) -> None:
        """Forgets what came of earlier ones."""
        self._chunks = {}

    def receive_weights(self, shapes: Shapes, backend: str, seconds: float) -> None:
        """Takes a chunk that the group sends."""
        self._chunks |= receive(self._weight_group, shapes, backend, seconds)

    def read_weights(self, file: str) -> None:
        """Takes a chunk out of a file of safetensors."""
        self._chunks |= load_file(file)

    def use_weights(self) -> None:
        """Computes with what has come."""
        chunks, self._chunks = self._chunks, {}
        self.reload_weights(weights_iterator=iter(chunks.items()))
        repack_heads(self.get_model())
