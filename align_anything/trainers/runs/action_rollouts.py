"""What acts in a run whose policy acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.generate import Generating
from align_anything.algorithms.online import Online
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import Conversation, Piece
from align_anything.datasets.dataset import ExampleDataset
from align_anything.engines.base import Engine
from align_anything.engines.process_group import device_of_rank
from align_anything.models.acting.checkpoint import load_acting
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.adapter import bare_model, find_adapter, put_on
from align_anything.policies.acting.collator import ActionCollator
from align_anything.policies.acting.heads import make_head
from align_anything.rollouts.acting import ActionRollouts
from align_anything.rollouts.base import RolloutEngine, Sampling
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.acting import acting, require_acting
from align_anything.trainers.runs.rewarding import check_readable
from align_anything.trainers.runs.sampling import is_guided
from align_anything.trainers.runs.settings import dtype_of

GENERATED_AT_ONCE = 64
"""Episodes, where the settings say no number."""


def sampling_of(
    resolved: Resolved[OnlineRunCfgs, Online], pair: Pair, spec: ActionSpec, steps_of_rollout: int
) -> Sampling:
    """How actions are sampled, one in each turn. Raises SettingsError for guidance."""
    models = resolved.cfgs.model_cfgs
    if is_guided(models):
        raise SettingsError(['model_cfgs.guidance_scale: actions are not guided; leave it out.'])
    check_readable(resolved.cfgs.reward_cfgs.reward_functions, ['action'], None)
    if resolved.algorithm.trains:
        require_acting(resolved.cfgs, spec)
    return Sampling(max_new_tokens=1, temperature=models.temperature)


def guided_if_asked(
    cfgs: OnlineRunCfgs, collate: ActionCollator, datasets: Sequence[ExampleDataset]
) -> tuple[ActionCollator, list[ExampleDataset]]:
    """The collator and the prompts as they are."""
    return collate, list(datasets)


def open_rollouts(
    resolved: Resolved[OnlineRunCfgs, Online], policy: Engine, spec: ActionSpec, sampling: Sampling
) -> tuple[RolloutEngine, Callable[[Piece], list[dict[str, Any]]]]:
    """Returns what acts with the weights of `policy`, and what says what was done. Every rank calls it."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    episodes = algorithm.per_device_prompt_batch_size * algorithm.num_generations
    rollouts = _open(policy, spec, cfgs.model_cfgs.generation_batch_size or episodes)
    return acting(rollouts, cfgs, spec), spec.decode


def sampling_of_answers(cfgs: RunCfgs, algorithm: Algorithm, pair: Pair, spec: ActionSpec) -> Sampling:
    """Raises SettingsError: `eval_tasks` knows nothing of environments, in which what is done is worth something."""
    raise SettingsError(
        [
            'train_cfgs.eval_tasks: what a model does is measured in an environment: evaluate it with an online '
            'algorithm (--environment, --eval_datasets), and leave this out.'
        ]
    )


def open_answers(cfgs: RunCfgs, policy: Engine, spec: ActionSpec, sampling: Sampling) -> RolloutEngine:
    """Returns what answers with the weights of `policy`. Every rank calls it."""
    return _open(policy, spec, cfgs.train_cfgs.per_device_eval_batch_size)


def open_frozen(
    resolved: Resolved[GenerationRunCfgs, Generating], spec: ActionSpec, sampling: Sampling, live: bool
) -> tuple[RolloutEngine, Callable[[Conversation], Conversation]]:
    """Returns what says the next action with the weights of the checkpoint, and what prepares a conversation for it."""
    cfgs, device = resolved.cfgs, device_of_rank()
    source, dtype = cfgs.model_cfgs.model_name_or_path, dtype_of(cfgs)
    adapter, model = find_adapter(source), load_acting(source, dtype)
    model = model if adapter is None else put_on(model, adapter)
    rollouts = ActionRollouts(
        bare_model(model.requires_grad_(False).eval().to(device)),
        spec,
        make_head(spec.config.head),
        device=device,
        batch_size=cfgs.model_cfgs.generation_batch_size or GENERATED_AT_ONCE,
    )
    return acting(rollouts, cfgs, spec), lambda conversation: conversation


def _open(policy: Engine, spec: ActionSpec, batch_size: int) -> ActionRollouts:
    return ActionRollouts(
        bare_model(policy.policy.model),
        spec,
        policy.policy.collate.head,
        device=policy.device,
        batch_size=batch_size,
        gathered=policy.gathered_weights,
    )
