"""Settings of the environment that the policy acts in by turns."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import OFF, Effect, Effects, Facts, needs

ADDRESS = ('http://', 'https://')
"""How the addresses of servers of environments begin."""


def _is_served(facts: Facts) -> bool:
    return str(facts.value('environment_cfgs.environment')).startswith(ADDRESS)


OF_SERVERS = Effect(
    lambda facts: not _is_served(facts),
    'the server of the environment decides this: give it to align-anything serve-environment, and leave it out here.',
    by=('environment_cfgs.environment',),
    off=(*OFF, 0),
)
IN_WORKERS = Effect(
    lambda facts: facts.value('environment_cfgs.environment_workers') > 0,
    'nothing can end an environment that hangs in the process that trains: give environment_workers too, or leave it '
    'out.',
    by=('environment_cfgs.environment_workers',),
)


class EnvironmentCfgs(Cfgs):
    """The environment that the policy acts in, for how long, and what becomes of what fails there."""

    takes_effect: ClassVar[Effects] = {
        '*': needs('environment_cfgs.environment'),
        'environment_workers': OF_SERVERS,
        'environment_kwargs': OF_SERVERS,
        'environment_timeout': (OF_SERVERS, IN_WORKERS),
    }

    environment: str | None = Field(
        None,
        description='Environment that responses are episodes in: a registered name, file.py:Class of your own, or the '
        'address of align-anything serve-environment. A row that names another in its column environment has that. '
        'null generates one turn.',
    )
    environment_kwargs: dict[str, Any] = Field(
        {}, description='Arguments of that environment; those in a column environment_kwargs of the row go over them.'
    )
    environment_workers: NonNegativeInt = Field(
        0,
        description='Processes of their own for environments, on each rank, on its CPU. 0 has them in the process that '
        'trains, where they wait for each other and nothing ends one that hangs.',
    )
    environment_timeout: PositiveFloat | None = Field(
        None,
        description='Seconds in which an environment in such a process must reset, step or score; else it is ended, '
        'and its episode begun again. null is 120.',
    )
    environment_weight: FiniteFloat = Field(
        1.0, description='Weight of what the environment rewards in the score of an episode.'
    )
    max_turns: PositiveInt = Field(
        8, description='Most turns of the policy in an episode, of max_new_tokens each; it is unfinished there.'
    )
    max_episode_tokens: PositiveInt | None = Field(
        None,
        description='Most tokens of an episode, its prompt and what the environment shows included; it is unfinished '
        'where no further turn fits. null is model_max_length.',
    )
    observation_max_chars: PositiveInt = Field(
        10_000, description='Characters that an environment shows at once; of more the middle is left out.'
    )
    observation_max_media: NonNegativeInt = Field(
        4, description='Images, videos and sounds that an environment shows at once; further ones are left out.'
    )
    environment_retries: NonNegativeInt = Field(
        1,
        description='How often an episode whose environment fails is begun again, with the same seed and the turns '
        'that it had.',
    )
    credit: Literal['episode', 'turn'] = Field(
        'episode',
        description='What is credited with rewards and costs of turns: the episode, whose sum they are (episode), or '
        'each turn with what came from it on (turn), which groups compare with the same turn of other episodes.',
    )
    on_limit: Literal['keep', 'zero', 'drop'] = Field(
        'keep',
        description='What an episode is worth in training that reached max_turns, max_new_tokens or '
        'max_episode_tokens: what it was given so far (keep), nothing (zero), or it is not trained on (drop).',
    )
    on_failure: Literal['drop', 'zero'] = Field(
        'drop',
        description='What becomes of an episode whose environment fails for good: it is left out (drop), or worth '
        'nothing (zero).',
    )
    max_failures: float = Field(
        0.1,
        ge=0,
        le=1,
        description='Share of the last hundred episodes that may fail; with more, or where all of a step fail, the run '
        'ends.',
    )
