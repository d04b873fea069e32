"""What a training on data answers for `eval_tasks`: prompts of its evaluation data, with the weights as they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.prompts import PromptTask, as_prompts
from align_anything.engines.base import Engine
from align_anything.models.spec import Spec
from align_anything.rollouts.base import RolloutEngine
from align_anything.trainers.loops.offline import Answers
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs import action_rollouts, denoised_rollouts, flow_rollouts, rollout_engine
from align_anything.trainers.runs.data import loader_in_order


class Kind(Protocol):
    """How a kind of models answers, one file each in this package."""

    def sampling_of_answers(self, cfgs: RunCfgs, algorithm: Algorithm, pair: Pair, spec: Spec) -> Any: ...

    def open_answers(self, cfgs: RunCfgs, policy: Engine, spec: Spec, sampling: Any) -> RolloutEngine: ...


KINDS: Mapping[str, Kind] = {
    'token': rollout_engine,
    'denoising step': denoised_rollouts,
    'action': action_rollouts,
    'denoised action': flow_rollouts,
}
"""By what a unit of their responses is, see `Spec.unit`."""


@dataclass(frozen=True)
class Asked:
    """What is to be answered, before weights are loaded.

    Attributes:
        prompts: those of each source.
        sampling: how the answers are sampled.
        guided: whether prompts have their unconditional form.
    """

    prompts: Mapping[str, ExampleDataset]
    sampling: Any
    guided: bool

    def open(self, cfgs: RunCfgs, policy: Engine, spec: Spec) -> Answers:
        """Returns the prompts with what answers them. Every rank calls it."""
        rollouts = KINDS[spec.unit].open_answers(cfgs, policy, spec, self.sampling)
        size = cfgs.train_cfgs.per_device_eval_batch_size
        loaders = {
            name: loader_in_order(rows, rows.sizes, size, as_prompts, cfgs) for name, rows in self.prompts.items()
        }
        return Answers(loaders, rollouts, self.sampling)


def asked(
    cfgs: RunCfgs,
    pair: Pair,
    algorithm: Algorithm,
    spec: Spec,
    names: Sequence[str],
    held_out: Sequence[ExampleDataset],
) -> Asked:
    """Returns the prompts of the evaluation data, whose sources have these names.

    Raises SettingsError for answers that the model cannot write, and for a length that leaves none for prompts.
    """
    sampling = KINDS[spec.unit].sampling_of_answers(cfgs, algorithm, pair, spec)
    longest, guided = sys.maxsize, False
    if spec.unit != 'token':
        guided = sampling.guidance.is_on
    else:
        longest = spec.max_length - sampling.max_new_tokens
        if longest < 1:
            raise SettingsError(
                [
                    f'train_cfgs.eval_max_new_tokens = {sampling.max_new_tokens} leaves nothing of '
                    f'model_cfgs.model_max_length = {spec.max_length} for a prompt. Lower the one or raise the other.'
                ]
            )
    task = PromptTask(spec.encode_prompt, longest, guided, 'eval_max_new_tokens')
    return Asked({name: rows.of_task(task) for name, rows in zip(names, held_out, strict=True)}, sampling, guided)
