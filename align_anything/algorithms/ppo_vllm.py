"""PPO whose settings let vLLM generate the responses."""

from __future__ import annotations

from typing import ClassVar

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.ppo import PPO


@ALGORITHMS.register('ppo_vllm')
class PPOVLLM(PPO):
    """PPO, with `use_vllm` set by configs/train/ppo_vllm.yaml."""

    name: ClassVar[str] = 'ppo_vllm'
