"""The environment of a run: checked before a model is loaded, and put around what generates."""

from __future__ import annotations

from typing import Any

from align_anything.algorithms.generate import Generate
from align_anything.algorithms.online import Online
from align_anything.configs.environment import ADDRESS, EnvironmentCfgs
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.redaction import without_secrets
from align_anything.core.actions import ActionSpace
from align_anything.core.errors import SettingsError, WorldError
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION
from align_anything.environments.base import checked_kwargs
from align_anything.environments.hosts import Here, Host
from align_anything.environments.observing import Limits
from align_anything.environments.pool import Pool
from align_anything.environments.remote import Remote
from align_anything.environments.steps import checked_tools
from align_anything.environments.trying import offered_by
from align_anything.environments.wire import actions_in
from align_anything.environments.workers import SECONDS, Workers
from align_anything.models.acting.known import ACTS
from align_anything.models.acting.spec import ActionSpec, ActionTurns
from align_anything.models.family import FamilySpec
from align_anything.models.spec import Spec
from align_anything.models.turns import TurnEncoder
from align_anything.rollouts.base import RolloutEngine
from align_anything.rollouts.episodes import Episodes

logger = get_logger(__name__)


def problems_of_acting(cfgs: OnlineRunCfgs, algorithm: Online | Generate) -> list[str]:
    """What settings keep responses from being episodes in the environment that they ask for."""
    settings, models = cfgs.environment_cfgs, cfgs.model_cfgs
    if settings.environment is None:
        return []
    longest, turn = settings.max_episode_tokens, models.max_new_tokens
    reasons = {
        'environment_cfgs.environment: turns are not guided; leave guidance_scale and eval_guidance_scale out.': (
            bool({models.guidance_scale, models.eval_guidance_scale} - {None, 1})
        ),
        f'environment_cfgs.max_episode_tokens = {longest} is more than model_cfgs.model_max_length = '
        f'{models.model_max_length}.': longest is not None and longest > models.model_max_length,
        f'environment_cfgs.max_episode_tokens = {longest} holds no turn of model_cfgs.max_new_tokens = {turn}.': (
            longest is not None and longest <= turn
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if settings.credit == 'turn':
        found += [*algorithm.problems_of_turns(), *_problems_of_scale(cfgs, algorithm)]
    try:
        _told(settings)
    except WorldError as error:
        found.append(f'environment_cfgs.environment: {error}')
    except SettingsError as error:
        found += [f'environment_cfgs.environment_kwargs: {problem}' for problem in error.problems]
    return found


def _problems_of_scale(cfgs: OnlineRunCfgs, algorithm: Online) -> list[str]:
    scaled = {
        'train_cfgs.normalize_reward': algorithm.normalize_reward,
        'reward_cfgs.reward_aggregation': cfgs.reward_cfgs.reward_aggregation == 'normalize_then_sum',
    }
    return [
        f'environment_cfgs.credit: {name} brings scores of whole episodes to scale, of which rewards of turns are no '
        'part then; leave one of them out.'
        for name, is_on in scaled.items()
        if is_on
    ]


def longest_episode(cfgs: OnlineRunCfgs) -> int | None:
    """Most tokens of an episode, its prompt included; None where responses are no episodes."""
    settings = cfgs.environment_cfgs
    return None if settings.environment is None else settings.max_episode_tokens or cfgs.model_cfgs.model_max_length


def require_acting(cfgs: OnlineRunCfgs, spec: FamilySpec | ActionSpec) -> None:
    """Raises ModelError where the chat template of the policy cannot write the episodes of the environment.

    Raises SettingsError where nothing that the policy does can be done there.
    """
    if cfgs.environment_cfgs.environment is not None:
        turns_of(spec).check(_told(cfgs.environment_cfgs)[0])
        require_same_actions(cfgs.environment_cfgs, spec)


def require_same_actions(settings: EnvironmentCfgs, spec: FamilySpec | ActionSpec) -> None:
    """Raises SettingsError where nothing that a policy does can be done in the environment, as far as it says what can.

    Actions of the policy that the environment does not name are only told: it may teach the policy to leave them. Those
    of environments that rows name are compared when their first episode begins.
    """
    if settings.environment is None or ACTION not in spec.emits or spec.space is None:
        return
    name, (_, there) = without_secrets(settings.environment), _told(settings)
    if there is None:
        return
    problem = spec.space.unfit(there)
    if problem:
        raise SettingsError([f'environment_cfgs.environment: the policy cannot act in {name}: {problem}.'])
    if beyond := spec.space.beyond(there):
        logger.warning('%s knows no %s, which the policy may do', name, ', '.join(beyond))


def turns_of(spec: Spec) -> TurnEncoder | ActionTurns:
    """What encodes the turns of an environment for a policy."""
    return ActionTurns(spec) if spec.unit in ACTS else TurnEncoder(spec)


def acting(rollouts: RolloutEngine, cfgs: OnlineRunCfgs, spec: Spec) -> RolloutEngine:
    """The engine, in the environment of the settings if they name one."""
    settings = cfgs.environment_cfgs
    if settings.environment is None:
        return rollouts
    limits = Limits(settings.observation_max_chars, settings.observation_max_media, spec.audio_rate)
    return Episodes(
        rollouts,
        spec,
        Pool(settings.environment, _kwargs(settings), limits, settings.environment_retries, _host(settings)),
        max_turns=settings.max_turns,
        max_tokens=longest_episode(cfgs),
        on_failure=settings.on_failure,
        max_failures=settings.max_failures,
        seed=cfgs.train_cfgs.seed,
        # Each rank has an engine of its own, or asks servers.
        in_step=not cfgs.vllm_cfgs.use_vllm or cfgs.vllm_cfgs.vllm_tensor_parallel_size > 1,
        expands=cfgs.vllm_cfgs.use_vllm,
        at_own_pace=cfgs.vllm_cfgs.vllm_server_urls is not None,
        encoder=turns_of(spec),
    )


def _host(settings: EnvironmentCfgs) -> Host:
    """Where the environments live."""
    if settings.environment.startswith(ADDRESS):
        return Remote(settings.environment)
    if settings.environment_workers:
        return Workers(settings.environment_workers, settings.environment_timeout or SECONDS)
    return Here()


def _kwargs(settings: EnvironmentCfgs) -> dict[str, Any]:
    if settings.environment.startswith(ADDRESS):
        return {}
    return checked_kwargs(settings.environment, settings.environment_kwargs)


def _told(settings: EnvironmentCfgs) -> tuple[list[dict[str, Any]], ActionSpace | None]:
    """The tools of the environment, and what can be done in it.

    It is made once and closed; of a served one, as its server tells. Raises WorldError for tools that are none.
    """
    if settings.environment.startswith(ADDRESS):
        remote = Remote(settings.environment)
        told = remote.told
        remote.close()
        return checked_tools(told.tools), actions_in(told.actions)
    offered = offered_by(settings.environment, _kwargs(settings))
    return offered.tools, offered.actions
