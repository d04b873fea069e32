"""One online run: the policy, what it is compared with, its critics, its rewards and its rollouts, put together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from align_anything.algorithms.critic import Critic
from align_anything.algorithms.online import Online
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.types import Example, Skipped
from align_anything.datasets.loader import Loader
from align_anything.datasets.prompts import Prompts
from align_anything.datasets.sampler import Sampler
from align_anything.engines.whole import whole_weights
from align_anything.models.adapter import bare_model
from align_anything.models.family import FamilySpec
from align_anything.rollouts.hf import HFRollouts
from align_anything.trainers.base.assembly import DTYPES, Assembled, assemble, choose_layout, precision_of
from align_anything.trainers.base.data import loader_in_order, names_of, training_sampler
from align_anything.trainers.base.online import OnlineLoop, steps_of_rollout
from align_anything.trainers.base.pair import Pair
from align_anything.trainers.base.reference import reference_scorer
from align_anything.trainers.base.reward_model import ModelJudge, open_scorer, require_head, spec_of_reward_model
from align_anything.trainers.base.rewarding import MODEL, Reward, make_rewards
from align_anything.trainers.base.run import Begun, begin, bookkeeping, check_steps, finish, start
from align_anything.trainers.base.slices import Slices


def train_online(pair: Pair, resolved: Resolved) -> None:
    """Runs one online training from settings to the final model in `<output_dir>/slice_end`."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    models: Any = cfgs.model_cfgs
    source = models.reward_model_name_or_path
    if source is not None:
        require_head(source)
    rewards = make_rewards(cfgs)
    run = begin(pair, resolved)
    judged_by = None if source is None else spec_of_reward_model(cfgs, source, pair)
    dataset, held_out = run.datasets(room=models.max_new_tokens)
    rows = (algorithm.per_device_prompt_batch_size, 1)
    sampler = training_sampler(run.sources.training, dataset, run.spec, cfgs, rows=rows)
    steps = total_steps(cfgs, sampler)
    check_steps(run, steps)

    torch.manual_seed(cfgs.train_cfgs.seed)
    policy = assemble(cfgs, algorithm, run.spec, pair, run.layout, steps)
    policy.engine.module.head.temper(models.temperature)
    critics = {role: _critic(role, cfgs, algorithm, run, steps) for role in algorithm.trains if role != 'policy'}
    reference = None
    if algorithm.refers:
        reference = reference_scorer(cfgs, algorithm, run.spec, policy, models.temperature)
    trained = {'policy': policy, **{role: critic for role, (critic, _) in critics.items()}}
    if source is not None:
        judge = _judge(cfgs, source, judged_by, algorithm, pair)
        rewards.append(Reward(MODEL, cfgs.reward_cfgs.reward_model_weight, judge))
    slices = Slices(resolved, run.output_dir, trained, run.spec)
    start(run, slices, sampler, steps)
    batch_size = cfgs.train_cfgs.per_device_eval_batch_size
    evaluation = {
        name: loader_in_order(rows, rows.sizes, batch_size, _collate, cfgs)
        for name, rows in zip(names_of(run.sources.evaluation), held_out, strict=True)
    }
    loop = OnlineLoop(
        engine=policy.engine,
        training=Loader(dataset, sampler, _collate, cfgs.data_cfgs.num_workers),
        evaluation=evaluation,
        policy=policy,
        critics=critics,
        reference=reference,
        rollouts=_rollouts(cfgs, policy, run.spec),
        rewards=rewards,
        output_dir=run.output_dir,
        **bookkeeping(run, slices, dataset, steps),
    )
    finish(run, loop, slices)


def total_steps(cfgs: RunCfgs, sampler: Sampler) -> int:
    """Optimizer steps of the run: `max_steps`, else those of the rollouts of all epochs."""
    from align_anything.trainers.base.data import total_steps as loader_steps

    if cfgs.train_cfgs.max_steps is not None:
        return cfgs.train_cfgs.max_steps
    return loader_steps(cfgs, sampler) * steps_of_rollout(cfgs)


def _collate(examples: Sequence[Example], skipped: Sequence[Skipped]) -> Prompts:
    return Prompts(list(examples), list(skipped))


def _critic(role: str, cfgs: RunCfgs, algorithm: Online, run: Begun, steps: int) -> tuple[Assembled, Critic]:
    train = cfgs.train_cfgs
    changed = {
        'learning_rate': train.critic_lr,
        'lr_scheduler_type': train.critic_lr_scheduler_type,
        'lr_warmup_ratio': train.critic_lr_warmup_ratio,
        'weight_decay': train.critic_weight_decay,
    }
    own = cfgs.model_copy(update={'train_cfgs': train.model_copy(update=changed)})
    critic = Critic(role=role, clip_range_value=train.clip_range_value)
    return assemble(own, critic, run.spec, run.pair, run.layout, steps), critic


def _judge(cfgs: RunCfgs, source: str, spec: FamilySpec, algorithm: Online, pair: Pair) -> ModelJudge:
    engine, collator = open_scorer(cfgs, spec, source, pair, choose_layout(cfgs, spec, algorithm))
    return ModelJudge(source, spec, engine, collator, cfgs.train_cfgs.per_device_train_batch_size)


def _rollouts(cfgs: RunCfgs, policy: Assembled, spec: FamilySpec) -> HFRollouts:
    models: Any = cfgs.model_cfgs
    size = cfgs.train_cfgs.per_device_prompt_batch_size * cfgs.train_cfgs.num_generations
    return HFRollouts(
        bare_model(policy.model),
        spec,
        dtype=DTYPES[precision_of(cfgs)],
        batch_size=models.generation_batch_size or size,
        whole=partial(whole_weights, policy.engine),
    )
