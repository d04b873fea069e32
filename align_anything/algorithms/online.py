"""What the algorithms share that learn from responses which the policy has just generated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.critic import Critic
from align_anything.configs.effects import Effects, never
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.schema import RunCfgs, TrainCfgs
from align_anything.core.types import Need
from align_anything.losses.compared import Compared, by_turn, whole_responses
from align_anything.losses.kl import KL_ESTIMATORS

ReduceSum = Callable[[Tensor], Tensor]
State = dict[str, Any]
KLEstimator = Literal[tuple(KL_ESTIMATORS)]
OF_ANSWERS = ('data_cfgs.train_on', 'data_cfgs.drop_truncated')
"""The settings that say what of the answers in the data is trained on."""


@dataclass(frozen=True)
class Experience:
    """All responses of one rollout on this rank, as algorithms read them: R responses with N tokens.

    Attributes:
        scores: the weighted sum of the rewards of each response, penalties taken off, `(R,)`.
        groups: the prompt that each response belongs to, `(R,)`.
        segments: the response of each token, `(N,)`.
        finished: whether the policy ended each response, `(R,)` bool; else it was clipped at the length limit.
        logprobs: of each token under the policy that sampled it, by the trainer, `(N,)`; None where the algorithm
            reads none before the update.
        reference: the same under the reference, where the algorithm asks for one, `(N,)`.
        values: the value of each critic before each token, `(N,)`, by the critic's role.
        bootstrap: the bootstrap value of each response by each critic, `(R,)`, by the critic's role, where the
            algorithm bootstraps.
        costs: what each response costs, where a cost model says so, `(R,)`; `all_costs` those of all ranks.
        turns: where turns of episodes are credited, the number of each token's turn, `(N,)`.
        turn_rewards: what of the scores was given at the end of which turn, at its last token, `(N,)`.
        turn_costs: the same of the costs.
    """

    scores: Tensor
    groups: Tensor
    segments: Tensor
    finished: Tensor
    logprobs: Tensor | None
    reference: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    bootstrap: Mapping[str, Tensor] = field(default_factory=dict)
    costs: Tensor | None = None
    all_costs: Sequence[float] = ()
    turns: Tensor | None = None
    turn_rewards: Tensor | None = None
    turn_costs: Tensor | None = None

    @property
    def compared(self) -> Compared:
        """What is compared with each other: responses, or their turns where these are credited."""
        if self.turns is None:
            return whole_responses(self.segments, self.groups)
        return by_turn(self.segments, self.groups, self.turns)


class Online(Algorithm):
    """Base of the online algorithms: what a rollout is, and what is made of it.

    `compares` says that the loss itself compares the responses to a prompt, so that no micro-batch may separate them,
    `of_events` what its defaults are where an environment says what episodes cost, and no cost model.
    """

    task: ClassVar[str] = 'prompt'
    generates: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    of_events: ClassVar[Mapping[str, Any]] = {}
    run_cfgs: ClassVar[type[RunCfgs]] = OnlineRunCfgs
    takes_effect: ClassVar[Effects] = dict.fromkeys(
        ('train_cfgs.group_by_length', 'data_cfgs.sample_cache_dir', *OF_ANSWERS),
        never('it means nothing where responses are generated; leave it out.'),
    )

    per_device_prompt_batch_size: PositiveInt = Field(1, description='Prompts of each device in one rollout.')
    num_generations: PositiveInt = Field(1, description='Responses that are sampled for each prompt.')
    update_iters: PositiveInt = Field(1, description='Epochs of training on one rollout.')
    normalize_reward: bool = Field(
        False, description='Normalizes scores by the running mean and standard deviation of the run.'
    )
    missing_eos_penalty: NonNegativeFloat = Field(
        0.0, description='Penalty on the score of a response without end token, clipped at max_new_tokens.'
    )
    overlong_buffer: PositiveInt | None = Field(
        None,
        description='Soft overlong penalty (DAPO): last tokens before max_new_tokens over which it rises to 1. null is '
        'none.',
    )

    def problems_with(self, meets: Need) -> list[str]:
        if meets != 'transition':
            return super().problems_with(meets)
        clipped = [name for name in ('missing_eos_penalty', 'overlong_buffer') if getattr(self, name)]
        why = 'is for responses that may be clipped; media never are: leave it out.'
        return [*super().problems_with(meets), *(f'train_cfgs.{name} {why}' for name in clipped)]

    def problems_of_turns(self) -> list[str]:
        """What keeps it from crediting each turn of an episode with what came of it."""
        return [f'environment_cfgs.credit: {self.name} compares whole responses; leave it out.']

    @property
    def warmup(self) -> int:
        """Optimizer steps at the beginning of a run in which its critics learn alone."""
        return 0

    @property
    def corrects(self) -> bool:
        """Whether the loss corrects for responses being sampled by other log-probabilities than the trainer's."""
        return False

    @property
    def reads_old(self) -> bool:
        """Whether it reads the scores of the policy that sampled before the first update, which has the same."""
        return 'old' in self.companions

    @property
    def weighed_kinds(self) -> Collection[str]:
        """The kinds of units that a setting of the loss names."""
        return ()

    def old_decay(self, rollouts: int) -> float | None:
        """What share of itself an old policy keeps that samples in place of the trained one, after so many rollouts.

        None where the trained policy samples.
        """
        return None

    @property
    def supervises(self) -> bool:
        """Whether an optimizer step has supervised rows too."""
        return False

    def without_supervision(self) -> Online:
        """The same algorithm without a supervised term."""
        return self

    @property
    def critics(self) -> Mapping[str, Critic]:
        """What each critic learns, by its role."""
        return {}

    def train_cfgs_of_critics(self, train: TrainCfgs) -> TrainCfgs:
        """How critics are trained, given how the policy is."""
        return train

    @property
    def bootstraps(self) -> bool:
        """Whether critics are asked for the bootstrap value of a response."""
        return False

    @property
    def further_batches(self) -> int:
        """How many further batches of prompts a rollout may take in search of responses that differ in score."""
        return 0

    @property
    def trained_responses(self) -> int:
        """How many of the responses to a prompt are trained on."""
        return self.num_generations

    def kept(self, scores: Sequence[Tensor]) -> list[list[int]]:
        """Which responses to each prompt are trained on, by their number, given the scores to each prompt, `(R,)`."""
        return [list(range(len(worth))) for worth in scores]

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        """What the losses read of each token, `(N,)` by name: its `advantage`, and for critics their `returns`.

        Every rank calls it; `reduce_sum` adds a tensor up over ranks. `state` is the algorithm's to read and write:
        plain values, the same on every rank, which are saved with the run. Numbers in it are told with the metrics.
        """
        return {}


class GroupBased(Online):
    """Base of the algorithms that learn from how the responses to a prompt differ, and nothing where they do not."""

    dynamic_sampling_rounds: NonNegativeInt = Field(
        0,
        description='Dynamic sampling (DAPO): more batches of prompts that a rollout may take to replace prompts '
        'whose responses all have the same score. What is still missing is filled with those. The data last for fewer '
        'rollouts, the number of optimizer steps stays what it is. 0 takes none.',
    )

    @property
    def further_batches(self) -> int:
        return self.dynamic_sampling_rounds
