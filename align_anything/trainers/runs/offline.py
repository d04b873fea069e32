"""One run over a fixed dataset: everything is opened and checked, then trained, then saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from align_anything.configs.resolve import Resolved
from align_anything.datasets.source_loading import source_names
from align_anything.reporting.callbacks import Callback
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.answers import asked
from align_anything.trainers.runs.assembly import assemble, evaluating, save
from align_anything.trainers.runs.begin import begin, bookkeeping, check_steps, finish, start
from align_anything.trainers.runs.checkpoints import Checkpoints, make_averages
from align_anything.trainers.runs.checks import check_evaluation
from align_anything.trainers.runs.data import (
    loader_in_order,
    row_buckets,
    row_costs,
    total_steps,
    training_loader,
    training_sampler,
)
from align_anything.trainers.runs.media_codes import prepare_codes
from align_anything.trainers.runs.prepared import prepare_latents
from align_anything.trainers.runs.previews import previews_of
from align_anything.trainers.runs.reference import make_roles
from align_anything.trainers.runs.settings import objective_of


def train(pair: Pair, resolved: Resolved, callbacks: Sequence[Callback] = ()) -> Path:
    """Runs one training from settings to the final model in `<output_dir>/slice_end`; returns its folder.

    Where one of the `callbacks` stopped it, it is that of the last checkpoint.
    """
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    run = begin(pair, resolved, callbacks)
    dataset, held_out = run.datasets()
    objective = objective_of(algorithm, run.spec.codes)
    names = source_names(run.sources.evaluation)
    to_answer = asked(cfgs, pair, algorithm, run.spec, names, held_out) if run.metrics else None
    prompts = [] if to_answer is None else [*to_answer.prompts.values()]
    everything, guided = [dataset, *held_out, *prompts], to_answer is not None and to_answer.guided
    known = prepare_codes(cfgs, run.spec, everything) or prepare_latents(cfgs, run.spec, everything, guided)
    tasks = run.tasks(prompts)
    for rows in (dataset, *held_out):
        rows.known = known
    costs, unusable = row_costs(dataset, run.collate, cfgs)
    (buckets, *held_out_buckets), without_bucket = zip(
        *(row_buckets(rows, run.spec, cfgs) for rows in (dataset, *held_out)), strict=True
    )
    # The check in `assemble` may fall back to another layout, in which these micro-batches can take more than the
    # budget. They stay as they are, because the learning rate is scheduled for their steps; the check says what to set.
    sampler = training_sampler(run.sources.training, dataset, run.collate, cfgs, costs, buckets=buckets)
    steps = total_steps(cfgs, sampler)
    check_steps(run, steps)
    check_evaluation(cfgs, ['loss', *objective.counts(run.collate([], []))], steps, run.metrics)

    torch.manual_seed(cfgs.train_cfgs.seed)
    policy = assemble(cfgs, algorithm, run.collate, steps)
    # Before the state of an earlier run is loaded: the policy is still what it is compared with.
    roles, training_rows, held_out_rows = make_roles(cfgs, algorithm, policy, dataset, held_out)
    averages = make_averages(cfgs, algorithm, policy)
    checkpoints = Checkpoints(
        resolved, run.output_dir, {'policy': policy}, run.spec, save, averages=averages, watchers=run.watchers
    )
    answers = None if to_answer is None else to_answer.open(cfgs, policy, run.spec)
    generating = None if answers is None else answers.rollouts
    previews = previews_of(cfgs, algorithm, run.spec, policy, run.resume_step, generating)
    start(run, checkpoints, sampler, steps)
    batch_size, held_out_collate = cfgs.train_cfgs.per_device_eval_batch_size, evaluating(cfgs, policy.policy.collate)
    evaluation = {
        name: loader_in_order(rows, dataset.sizes, batch_size, held_out_collate, cfgs, own)
        for name, rows, dataset, own in zip(names, held_out_rows, held_out, held_out_buckets, strict=True)
    }
    loop = OfflineLoop(
        engine=policy,
        roles=roles,
        objective=objective,
        training=training_loader(training_rows, sampler, policy.policy.collate, cfgs),
        evaluation=evaluation,
        previews=previews,
        tasks=tasks,
        answers=answers,
        **bookkeeping(run, checkpoints, dataset, steps),
    )
    # Rows whose costs were looked at are told once.
    loop.file_skips([*unusable, *sum(without_bucket if costs is None else without_bucket[1:], [])])
    return finish(run, loop, checkpoints)
