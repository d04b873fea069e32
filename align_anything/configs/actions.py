"""Settings of what a policy does: what its actions are, and how a token model writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import Effect, Effects, excludes, writing
from align_anything.core.types import ACTION

NAMED = 'named actions are no numbers; leave it out, or leave action_names out.'
Name = Annotated[str, Field(min_length=1)]


TAUGHT = Effect(
    lambda facts: facts.algorithm.task == 'supervised',
    'it means nothing but in supervised fine-tuning: whatever is trained later keeps its statistics; leave it out.',
)


SPOKEN = ('action_dataset', 'action_executed')
"""What means something wherever actions are generated, also by a model of which nobody says beforehand that it acts."""
ACTS = Effect(
    lambda facts: facts.writes is None or ACTION in facts.writes or not facts.algorithm.trains,
    'it means nothing on a modality pair that writes no actions; leave it out.',
)


class ActionCfgs(Cfgs):
    """What the actions are that a policy learns. A checkpoint that has an action space acts in that."""

    takes_effect: ClassVar[Effects] = {
        '*': replace(writing(ACTION), spares=frozenset(f'action_cfgs.{key}' for key in SPOKEN)),
        **dict.fromkeys(SPOKEN, ACTS),
        **{
            f'action_{key}': excludes('action_cfgs.action_names', why=NAMED, off=(None, [], default))
            for key, default in (
                ('dimensions', None),
                ('bins', 256),
                ('binning', 'uniform'),
                ('normalization', 'quantiles'),
                ('as_they_are', None),
            )
        },
        'action_statistics': (TAUGHT, excludes('action_cfgs.action_names', why=NAMED)),
    }

    action_tokens: Literal['tail', 'words'] | None = Field(
        None,
        description='How a model without an action space writes actions: by the last ids of its text vocabulary, as '
        'OpenVLA does (tail), or by their names, among all other words (words). null is the action space of the '
        'checkpoint; align-anything add-action-tokens gives it reserved tokens.',
    )
    action_names: list[Name] | None = Field(
        None, description='The named actions, in the order of their tokens. null takes those in the training data.'
    )
    action_dimensions: list[Name] | None = Field(
        None, description='Names of the numbers of an action. null calls them x0, x1 and so on.'
    )
    action_bins: PositiveInt = Field(256, ge=2, description='How many values of a dimension the tokens tell apart.')
    action_binning: Literal['uniform', 'openvla'] = Field(
        'uniform',
        description='Where the bins lie: equal ones from -1 to 1, or those of OpenVLA, whose last one holds the 1 '
        'alone and which count down from the end of the vocabulary.',
    )
    action_normalization: Literal['quantiles', 'min_max', 'mean_std', 'identity'] = Field(
        'quantiles',
        description='What brings the numbers of actions to -1 to 1: their 1st and 99th percentiles, their extremes, '
        'their mean and deviation (not for tokens), or nothing.',
    )
    action_as_they_are: list[Name] | None = Field(
        None, description='Dimensions that are not normalised, such as a gripper that is open or closed.'
    )
    action_dataset: str | None = Field(
        None,
        description='Dataset whose statistics bring what the policy says back to numbers of the environment. null is '
        'the only one; with several it has to be named. It also says whose statistics hold for a single training '
        'dataset; several have each those of their own name.',
    )
    action_statistics: list[Name] | None = Field(
        None,
        description='Files with published statistics, each with the names of its datasets (norm_stats of OpenVLA, '
        'meta/stats.json of LeRobot): they hold in place of those of the data, and of the checkpoint. null computes '
        'what the checkpoint lacks.',
    )
    action_states: list[Name] | None = Field(
        None,
        description='States of the body that a model of tokens reads in each step, by name, in this order: each number '
        'as one of 256 bins of its percentiles, in words. null is those of the action space, or none.',
    )
    model_version: str | None = Field(
        None,
        description='Published size that a SPOC checkpoint has to be of: small_3, small_6, base_3 or base_6. Another '
        'one is refused. null takes it as it is.',
    )
    action_chunk: PositiveInt | None = Field(
        None,
        description='Steps that the policy says in one turn. null is what its action space has, or 1.',
    )
    action_decoding: Literal['autoregressive', 'parallel'] | None = Field(
        None,
        description='How the tokens of a turn are sampled: each one behind those before it (autoregressive), or all of '
        'them in one pass over placeholders that see each other (parallel, as OpenVLA-OFT). null is what the action '
        'space has, or autoregressive.',
    )
    action_executed: PositiveInt | None = Field(
        None, description='Steps of a turn that are done before the policy is asked again. null is all of them.'
    )
