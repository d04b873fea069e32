"""One online run: the policy, what it is compared with, its critics, its rewards and its rollouts, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from align_anything.algorithms.online import Online
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.core.distributed import is_main
from align_anything.core.errors import SettingsError
from align_anything.datasets.loader import Loader
from align_anything.datasets.prompts import as_prompts
from align_anything.datasets.source_loading import source_names
from align_anything.engines.base import Engine
from align_anything.models.family import FamilySpec
from align_anything.reporting.callbacks import Callback
from align_anything.reporting.completions import Completions
from align_anything.reporting.console import TrainingConsole
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.online_report import names_of_numbers
from align_anything.reporting.unread import FailedEpisodes, UnreadResponses
from align_anything.rollouts.shared import SharedRollouts
from align_anything.trainers.loops.failing import Failing
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.loops.pending import Pending
from align_anything.trainers.loops.splitting import steps_of_rollout
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import assemble, make_collator, save
from align_anything.trainers.runs.begin import Begun, begin, bookkeeping, check_steps, finish, start
from align_anything.trainers.runs.checkpoints import OLD, Checkpoints, make_averages
from align_anything.trainers.runs.checks import check_evaluation, check_online, check_warmup
from align_anything.trainers.runs.data import loader_in_order, prompt_sampler
from align_anything.trainers.runs.generating import GENERATING
from align_anything.trainers.runs.judges import open_judges
from align_anything.trainers.runs.media_codes import prepare_codes
from align_anything.trainers.runs.prepared import prepare_latents
from align_anything.trainers.runs.previews import previews_of
from align_anything.trainers.runs.ptx import ptx_dataset, ptx_loader, with_ptx_if_given
from align_anything.trainers.runs.reference import reference_scorer
from align_anything.trainers.runs.rewarding import rewards_to_learn_from
from align_anything.trainers.runs.roles import (
    critic_cfgs,
    critic_spec,
    judges_of,
    require_head,
    spec_of_judge,
)
from align_anything.trainers.runs.rollout_engine import check_rollouts
from align_anything.trainers.runs.sampling import is_guided


def train_online(pair: Pair, resolved: Resolved[OnlineRunCfgs, Online], callbacks: Sequence[Callback] = ()) -> Path:
    """Runs one online training from settings to the final model in `<output_dir>/slice_end`; returns its folder.

    Where one of the `callbacks` stopped it, it is that of the last checkpoint.
    """
    resolved = with_ptx_if_given(resolved)
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    models = cfgs.model_cfgs
    check_online(cfgs, algorithm)
    _check_shared(cfgs)
    check_rollouts(resolved)
    rewards = rewards_to_learn_from(cfgs)
    judges = judges_of(cfgs, algorithm)
    for judge in judges.values():
        require_head(judge.source)
    run = begin(pair, resolved, callbacks)
    specs = {name: spec_of_judge(cfgs, judge, pair) for name, judge in judges.items()}
    critic_specs = {role: critic_spec(role, cfgs, run.spec, pair) for role in algorithm.critics}
    generating = GENERATING[run.spec.unit]
    sampling = generating.sampling_of(resolved, pair, run.spec, steps_of_rollout(cfgs, algorithm))
    dataset, held_out = run.datasets(reserved=models.max_new_tokens)
    collate, (dataset, *held_out) = generating.guided_if_asked(cfgs, run.collate, [dataset, *held_out])
    run = replace(run, collate=collate)
    supervised = ptx_dataset(resolved, pair, run.spec)
    rows = [dataset, *held_out, *([] if supervised is None else [supervised])]
    prepare_codes(cfgs, run.spec, rows)
    prepare_latents(cfgs, run.spec, rows, is_guided(models))
    sampler, steps = prompt_sampler(run.sources, dataset, run.collate, cfgs, algorithm)
    check_steps(run, steps)
    check_warmup(algorithm, steps)
    acts = cfgs.environment_cfgs.environment is not None
    names = [*(reward.name for reward in rewards), *judges]
    check_evaluation(cfgs, names_of_numbers(names, run.spec.unit == 'token', acts), steps, run.metrics)
    tasks = run.tasks(held_out)

    torch.manual_seed(cfgs.train_cfgs.seed)
    policy = assemble(cfgs, algorithm, run.collate, steps - algorithm.warmup)
    policy.policy.set_temperature(models.temperature, models.emit_temperature)
    critics = {
        role: (_critic(role, resolved, spec, pair, steps), algorithm.critics[role])
        for role, spec in critic_specs.items()
    }
    reference = None
    if algorithm.refers:
        reference = reference_scorer(cfgs, algorithm, policy, models.temperature, models.emit_temperature)
    trained = {'policy': policy, **{role: critic for role, (critic, _) in critics.items()}}
    rewards += open_judges(cfgs, judges, specs, pair, algorithm)
    rollouts, decode = generating.open_rollouts(resolved, policy, run.spec, sampling)
    episodes = rollouts if acts else None
    if cfgs.train_cfgs.sequence_parallel_size > 1:
        rollouts = SharedRollouts(rollouts, cfgs.train_cfgs.sequence_parallel_size)
    pending = Pending(policy.device, decode, episodes)
    previews = previews_of(cfgs, algorithm, run.spec, policy, run.resume_step, rollouts)
    averages = make_averages(cfgs, algorithm, policy)
    checkpoints = Checkpoints(resolved, run.output_dir, trained, run.spec, save, pending, averages, run.watchers)
    start(run, checkpoints, sampler, steps)
    batch_size = cfgs.train_cfgs.per_device_eval_batch_size
    evaluation = {
        name: loader_in_order(rows, rows.sizes, batch_size, as_prompts, cfgs)
        for name, rows in zip(source_names(run.sources.evaluation), held_out, strict=True)
    }
    kept = bookkeeping(run, checkpoints, dataset, steps)
    loop = OnlineLoop(
        engine=policy,
        spec=run.spec,
        training=Loader(dataset, sampler, as_prompts, cfgs.data_cfgs.num_workers),
        evaluation=evaluation,
        previews=previews,
        tasks=tasks,
        critics=critics,
        reference=reference,
        old=averages.get(OLD),
        rollouts=rollouts,
        sampling=sampling,
        pending=pending,
        rewards=rewards,
        unread=UnreadResponses(run.output_dir, run.resume_step),
        failing=Failing(
            episodes, cfgs.environment_cfgs.environment or '', FailedEpisodes(run.output_dir, run.resume_step)
        ),
        completions=_completions(run, kept['console'], kept['writer']),
        ptx=None if supervised is None else ptx_loader(supervised, as_prompts, cfgs),
        **kept,
    )
    if supervised is not None and loop.rows is not None:
        loop.rows += len(supervised)
    return finish(run, loop, checkpoints)


def _check_shared(cfgs: OnlineRunCfgs) -> None:
    """Raises SettingsError for what ranks that share rows cannot do, with reasons."""
    if cfgs.train_cfgs.sequence_parallel_size == 1:
        return
    reasons = {
        'ranks that share rows exchange what each generated, which they cannot while they update: leave '
        'vllm_cfgs.vllm_async out.': cfgs.vllm_cfgs.vllm_async,
        'the state that predicts a code without its prompt may be that of another rank: leave '
        'model_cfgs.guidance_scale out.': cfgs.model_cfgs.guidance_scale not in (None, 1),
    }
    problems = [f'train_cfgs.sequence_parallel_size: {why}' for why, holds in reasons.items() if holds]
    if problems:
        raise SettingsError(problems)


def _completions(run: Begun, console: TrainingConsole, writer: MetricsWriter) -> Completions | None:
    if run.resolved.cfgs.logger_cfgs.log_completions is None or not is_main():
        return None
    return Completions(run.output_dir, run.spec, console, writer, run.resume_step)


def _critic(role: str, resolved: Resolved[OnlineRunCfgs, Online], spec: FamilySpec, pair: Pair, steps: int) -> Engine:
    own, learned = critic_cfgs(role, resolved.cfgs, resolved.algorithm), resolved.algorithm.critics[role]
    return assemble(own, learned, make_collator(own, spec, pair, learned), steps)
