"""The environment of a run: checked before a model is loaded, and put around what generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.configs.environment import ADDRESS, EnvironmentCfgs
from align_anything.configs.online import OnlineRunCfgs
from align_anything.core.errors import SettingsError, WorldError
from align_anything.environments.base import checked_kwargs, make_environment
from align_anything.environments.hosts import Here, Host
from align_anything.environments.observing import Limits
from align_anything.environments.pool import Pool
from align_anything.environments.remote import Remote
from align_anything.environments.workers import SECONDS, Workers
from align_anything.models.acting.spec import ActionTurns
from align_anything.models.spec import Spec
from align_anything.models.turns import TurnEncoder
from align_anything.rollouts.base import RolloutEngine
from align_anything.rollouts.episodes import Episodes
from align_anything.trainers.runs.sampling import is_guided


def problems_of_acting(cfgs: OnlineRunCfgs) -> list[str]:
    """What settings keep responses from being episodes in the environment that they ask for."""
    settings, models = cfgs.environment_cfgs, cfgs.model_cfgs
    if settings.environment is None:
        return []
    longest, turn = settings.max_episode_tokens, models.max_new_tokens
    reasons = {
        'environment_cfgs.environment: episodes are not generated with vLLM yet; leave vllm_cfgs.use_vllm out.': (
            cfgs.vllm_cfgs.use_vllm
        ),
        'environment_cfgs.environment: turns are not guided; leave guidance_scale and eval_guidance_scale out.': (
            is_guided(models)
        ),
        f'environment_cfgs.max_episode_tokens = {longest} is more than model_cfgs.model_max_length = '
        f'{models.model_max_length}.': longest is not None and longest > models.model_max_length,
        f'environment_cfgs.max_episode_tokens = {longest} holds no turn of model_cfgs.max_new_tokens = {turn}.': (
            longest is not None and longest <= turn
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    try:
        _tools(cfgs)
    except WorldError as error:
        found.append(f'environment_cfgs.environment: {error}')
    except SettingsError as error:
        found += [f'environment_cfgs.environment_kwargs: {problem}' for problem in error.problems]
    return found


def longest_episode(cfgs: OnlineRunCfgs) -> int | None:
    """Most tokens of an episode, its prompt included; None where responses are no episodes."""
    settings = cfgs.environment_cfgs
    return None if settings.environment is None else settings.max_episode_tokens or cfgs.model_cfgs.model_max_length


def require_acting(cfgs: OnlineRunCfgs, spec: Spec) -> None:
    """Raises ModelError where the chat template of the policy cannot write the episodes of the environment."""
    if cfgs.environment_cfgs.environment is not None:
        turns_of(spec).check(_tools(cfgs))


def turns_of(spec: Spec) -> TurnEncoder | ActionTurns:
    """What encodes the turns of an environment for a policy."""
    return ActionTurns(spec) if spec.unit == 'action' else TurnEncoder(spec)


def acting(rollouts: RolloutEngine, cfgs: OnlineRunCfgs, spec: Spec) -> RolloutEngine:
    """The engine, in the environment of the settings if they name one."""
    settings = cfgs.environment_cfgs
    if settings.environment is None:
        return rollouts
    limits = Limits(settings.observation_max_chars, settings.observation_max_media, spec.audio_rate)
    return Episodes(
        rollouts,
        spec,
        Pool(settings.environment, _kwargs(cfgs), limits, settings.environment_retries, _host(settings)),
        max_turns=settings.max_turns,
        max_tokens=longest_episode(cfgs),
        on_failure=settings.on_failure,
        max_failures=settings.max_failures,
        seed=cfgs.train_cfgs.seed,
        encoder=turns_of(spec),
    )


def _host(settings: EnvironmentCfgs) -> Host:
    """Where the environments live."""
    if settings.environment.startswith(ADDRESS):
        return Remote(settings.environment, settings.environment_timeout)
    if settings.environment_workers:
        return Workers(settings.environment_workers, settings.environment_timeout or SECONDS)
    return Here()


def _kwargs(cfgs: OnlineRunCfgs) -> dict[str, Any]:
    settings = cfgs.environment_cfgs
    if settings.environment.startswith(ADDRESS):
        return {}
    return checked_kwargs(settings.environment, settings.environment_kwargs)


def _tools(cfgs: OnlineRunCfgs) -> Sequence[Mapping[str, Any]]:
    """The tools of the environment, which is made once and closed; those of a served one as its server tells."""
    if cfgs.environment_cfgs.environment.startswith(ADDRESS):
        remote = Remote(cfgs.environment_cfgs.environment)
        tools = remote.told.tools
        remote.close()
        return tools
    environment = make_environment(cfgs.environment_cfgs.environment, _kwargs(cfgs))
    tools = environment.tools
    environment.close()
    return tools
