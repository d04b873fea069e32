"""What generates the responses of a run, by what a unit of them is, see `Spec.unit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from align_anything.algorithms.online import Online
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.core.types import Piece
from align_anything.datasets.dataset import ExampleDataset
from align_anything.engines.base import Engine
from align_anything.models.spec import Spec
from align_anything.policies.base import Collator
from align_anything.rollouts.base import RolloutEngine
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs import action_rollouts, denoised_rollouts, flow_rollouts, rollout_engine


class Generating(Protocol):
    """How a kind of models generates, one file each in this package."""

    def sampling_of(
        self, resolved: Resolved[OnlineRunCfgs, Online], pair: Pair, spec: Spec, steps_of_rollout: int
    ) -> Any: ...

    def guided_if_asked(
        self, cfgs: OnlineRunCfgs, collate: Collator, datasets: Sequence[ExampleDataset]
    ) -> tuple[Collator, list[ExampleDataset]]: ...

    def open_rollouts(
        self, resolved: Resolved[OnlineRunCfgs, Online], policy: Engine, spec: Spec, sampling: Any
    ) -> tuple[RolloutEngine, Callable[[Piece], list[dict[str, Any]]]]: ...


GENERATING: Mapping[str, Generating] = {
    'token': rollout_engine,
    'denoising step': denoised_rollouts,
    'action': action_rollouts,
    'denoised action': flow_rollouts,
}
