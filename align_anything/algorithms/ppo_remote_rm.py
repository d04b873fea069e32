"""PPO whose settings let a service reward the responses."""

from __future__ import annotations

from typing import ClassVar

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.ppo import PPO


@ALGORITHMS.register('ppo_remote_rm')
class PPORemoteRM(PPO):
    """PPO, with `remote_rm_url` set by configs/train/ppo_remote_rm.yaml."""

    name: ClassVar[str] = 'ppo_remote_rm'
