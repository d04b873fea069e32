"""What rewards the responses of a run: functions, a trained model, a service; each by name and with a weight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from align_anything.configs.online import COST, MODEL, OnlineRunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import MediaKind
from align_anything.models.codes import MediaCodes
from align_anything.rewards.base import (
    SERVICE,
    Reward,
    call_reward,
    check_options,
    get_reward,
    kinds_read,
    reward_names,
)
from align_anything.rewards.episodes import ENVIRONMENT, costs_of_environment, rewards_of_environment
from align_anything.rewards.remote import RemoteReward


def make_rewards(cfgs: OnlineRunCfgs) -> list[Reward]:
    """Everything that rewards the responses of a run but a model, which is loaded later; and what bounds
    their cost, where no model does.

    Raises SettingsError when nothing does, or two go by one name.
    """
    models = cfgs.model_cfgs
    rewards = function_rewards(cfgs)
    if models.remote_rm_url is not None:
        service = RemoteReward(
            models.remote_rm_url,
            models.remote_rm_timeout,
            models.remote_rm_retry_times,
            batch_size=models.remote_rm_batch_size,
            send_media=models.remote_rm_send_media,
        )
        rewards.append(Reward(SERVICE, cfgs.reward_cfgs.remote_rm_weight, service))
    if cfgs.environment_cfgs.environment is not None:
        rewards.append(Reward(ENVIRONMENT, cfgs.environment_cfgs.environment_weight, rewards_of_environment))
    names = [*(reward.name for reward in rewards), *([MODEL] if models.reward_model_name_or_path else [])]
    if COST in names:
        raise SettingsError([f"reward_cfgs.reward_functions: '{COST}' is what a cost model says; rename the function."])
    if not names:
        raise SettingsError(
            [
                'nothing rewards the responses: give model_cfgs.reward_model_name_or_path, model_cfgs.remote_rm_url, '
                f'environment_cfgs.environment, or reward_cfgs.reward_functions ({", ".join(reward_names())}).'
            ]
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError([f'reward_cfgs.reward_functions: more than one goes by the name {", ".join(twice)}.'])
    if cfgs.environment_cfgs.environment is not None and COST in models.judges and models.judges[COST].source is None:
        rewards.append(Reward(COST, 0.0, costs_of_environment))
    return rewards


def rewards_to_learn_from(cfgs: OnlineRunCfgs) -> list[Reward]:
    """As `make_rewards`. Raises SettingsError also where none of them, and no model, has a weight."""
    rewards, models = make_rewards(cfgs), cfgs.model_cfgs
    judged = bool(models.reward_model_name_or_path) or COST in models.judges
    if not judged and not any(reward.weight for reward in rewards):
        raise SettingsError(
            [
                f'what rewards the responses ({", ".join(reward.name for reward in rewards)}) has a weight of 0 '
                '(environment_weight, remote_rm_weight, reward_weights): nothing would be learned. Give something a '
                'weight.'
            ]
        )
    return rewards


def function_rewards(cfgs: OnlineRunCfgs) -> list[Reward]:
    """The functions that the settings name. Raises SettingsError or RewardError for what cannot be used of them."""
    rewards = cfgs.reward_cfgs
    names = rewards.reward_functions
    weights = [1.0] * len(names) if rewards.reward_weights is None else rewards.reward_weights
    if len(weights) != len(names):
        raise SettingsError(
            [f'reward_cfgs.reward_weights has {len(weights)} numbers for {len(names)} reward_functions.']
        )
    stray = [name for name in rewards.reward_kwargs if name not in names]
    if stray:
        raise SettingsError(
            [f"reward_cfgs.reward_kwargs: '{name}' is not among the reward_functions." for name in stray]
        )
    made = []
    for name, weight in zip(names, weights, strict=True):
        function = get_reward(name)
        options = check_options(name, function, rewards.reward_kwargs.get(name, {}))
        made.append(Reward(name.rpartition(':')[2], weight, partial(call_reward, name, function, options=options)))
    return made


def check_readable(names: Sequence[str], written: Collection[MediaKind], codes: MediaCodes | None) -> None:
    """Raises SettingsError for a reward function that would find nothing to judge in any response.

    Args:
        names: the functions of a run.
        written: the kinds of media that its responses hold.
        codes: those of its policy's family, None where it writes no codes.
    """
    problems = []
    for name in names:
        wanted = sorted(kinds_read(name))
        found = [kind for kind in wanted if kind in written]
        if wanted and not found:
            problems.append(
                f"reward_cfgs.reward_functions: '{name}' judges {' and '.join(wanted)}, and responses hold "
                f'{", ".join(written) or "text alone"}.'
            )
        elif found and codes is not None and not any(codes.rules[kind].decodes for kind in found):
            problems.append(
                f"reward_cfgs.reward_functions: '{name}' judges {' and '.join(found)}, and the codec in "
                f'{codes.rules[found[0]].folder} cannot decode, so there are codes and nothing to look at or hear. '
                'Give the model a codec with a decoder, or take rewards that read text.'
            )
    if problems:
        raise SettingsError(problems)
