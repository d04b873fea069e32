"""PPO's surrogate on several responses to each prompt, without a critic."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.reinforce_plus_plus import ReinforcePlusPlus


@ALGORITHMS.register('multi_ppo')
class MultiPPO(ReinforcePlusPlus):
    """REINFORCE++ with as many responses to a prompt as its other estimators compare."""

    name: ClassVar[str] = 'multi_ppo'

    num_generations: PositiveInt = Field(4, description='Group size: responses for each prompt.')
