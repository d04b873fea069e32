"""The loop that generates responses, has them rewarded, and trains on them: a rollout for each step of the loader."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from align_anything.algorithms.critic import Critic
from align_anything.algorithms.online import Experience, Online
from align_anything.configs.online import COST, OnlineRunCfgs
from align_anything.core.distributed import all_reduce_sum, gathered_lists, rank
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, Example, Response, Scored, Skipped
from align_anything.datasets.loader import Loader
from align_anything.datasets.prompts import Prompts
from align_anything.datasets.source_loading import source_names
from align_anything.engines.averaged import AveragedWeights
from align_anything.engines.base import Engine
from align_anything.engines.by_kind import ByKind
from align_anything.engines.on_policy import OnPolicy
from align_anything.engines.step import StepResult, combined
from align_anything.losses.moments import NOTHING_SEEN, merged, moments, normalised
from align_anything.losses.shaping import normalised_sum, weighted_sum
from align_anything.models.family import FamilySpec
from align_anything.reporting.completions import Completions
from align_anything.reporting.metrics import peak_memory
from align_anything.reporting.online_report import (
    RESPONSES,
    UNSAID,
    critic_metrics,
    means,
    numbers_of,
    rollout_metrics,
    staleness,
    sums_of,
    uninformative,
)
from align_anything.reporting.unread import UnreadResponses
from align_anything.rewards.base import Reward, check_scores
from align_anything.rollouts.base import RolloutEngine, Sampling
from align_anything.rollouts.experience import (
    Rollout,
    complete,
    informative_first,
    joined,
    kept_of,
    responses_of,
    spread,
)
from align_anything.trainers.loops.base import EVALUATION_SEED, LoaderStep, Loop, examples_of, listed
from align_anything.trainers.loops.crediting import at_limits, credited, penalised, usable
from align_anything.trainers.loops.failing import Failing
from align_anything.trainers.loops.judging import completions_of, numbers
from align_anything.trainers.loops.pending import Pending
from align_anything.trainers.loops.progress import rank_seed
from align_anything.trainers.loops.scoring import Scoring, asking, score
from align_anything.trainers.loops.splitting import split_for_scoring, split_into_steps, split_step, steps_of_rollout


@dataclass
class OnlineLoop(Loop):
    """Trains on responses that the policy generates as it goes.

    Attributes:
        spec: the family of the policy.
        critics: what says how much reward is to come, by role, each in an engine of its own.
        reference: what says the scores of the reference.
        old: the policy that samples and follows the trained one, where an algorithm has such.
        rollouts: generates the responses.
        sampling: how.
        pending: those of the next rollout, where they are generated ahead.
        rewards: what rewards them.
        unread: lists the responses that a model among the rewards cannot read.
        failing: lists and counts the episodes whose environment failed.
        completions: shows whole responses, if they are asked for.
        ptx: gives the supervised rows of each optimizer step, if it has such.
    """

    cfgs: OnlineRunCfgs
    algorithm: Online
    spec: FamilySpec
    critics: Mapping[str, tuple[Engine, Critic]]
    reference: Callable[..., Scored] | None
    old: AveragedWeights | None
    rollouts: RolloutEngine
    sampling: Sampling
    pending: Pending
    rewards: Sequence[Reward]
    unread: UnreadResponses
    failing: Failing
    completions: Completions | None
    ptx: Loader | None
    _seconds: dict[str, float] = field(default_factory=dict)
    _unread: dict[str, int] = field(default_factory=dict)
    _unusable: list[Skipped] = field(default_factory=list)
    _truncated: int = 0
    _failed: int = 0
    _flops: Flops = field(default_factory=Flops)
    _policy_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.failing.begin(self.progress.state)
        if self.ptx is not None:
            rows = self.ptx.endless(self.progress.step)
            # The workers are forked with the first rows: now, and not while a thread generates.
            self._rows = chain([next(rows)], rows)

    def run(self) -> bool:
        """As every loop. Raises WorldError where all episodes that were counted last failed."""
        whole = super().run()
        self.failing.conclude()
        return whole

    def _step(self, loaded: LoaderStep) -> bool:
        started = time.perf_counter()
        self._seconds, self._unread, self._truncated, self._failed = {}, {}, 0, 0
        self._flops, self._policy_seconds = Flops(), 0.0
        before = self.progress.step
        stop, written = self._sum([float(self.stop_asked()), self._vote()])
        self._written(written)
        generated, waited = self._rollout(loaded)
        self.rollouts.sleep()
        within, most = usable(generated, self.cfgs), self.algorithm.per_device_prompt_batch_size
        trained = self._learn_from(informative_first(within, most) if self.algorithm.further_batches else within)
        with self._clock('update'), self._timing():
            results, values = self._update(trained)
            if self.old is not None:
                self.old.follow(self.algorithm.old_decay(self.old.updates + 1))
        took = loaded.waited + time.perf_counter() - started
        self.console.advance(self.progress.step)
        interval, step = self.cfgs.logger_cfgs.log_interval, self.progress.step
        if step // interval > before // interval or step == self.steps:
            self._report(generated, trained, results, values, took, waited)
        rollout = -(-step // steps_of_rollout(self.cfgs, self.algorithm))
        if self.completions is not None:
            if rollout % self.cfgs.logger_cfgs.log_completions == 0 or step == self.steps:
                self.completions.write(step, generated)
        return self._stepped(before, bool(stop))

    def close(self) -> None:
        """As every loop, and closes what generates ahead and what shows completions."""
        self.pending.close()
        self.unread.close()
        self.failing.close()
        if self.completions is not None:
            self.completions.close()
        if self.ptx is not None:
            self.ptx.close()
        super().close()

    def evaluate(self) -> None:
        """Rewards one response to each held-out prompt, over all of them and by source where there are several."""
        if not self.evaluation:
            return
        self.pending.wait()
        if self.tasks is not None:
            self.tasks.begin(self.progress.step)
        by_source = {name: self._evaluated(name, loader) for name, loader in self.evaluation.items()}
        self.rollouts.sleep()
        names = {name: None for own, _ in by_source.values() for name in own}
        totals = [sums for own, sums in by_source.values() if own]
        said, said_of_each = ({}, {}) if self.tasks is None else self.tasks.measured()
        found = {**(means(names, torch.stack(totals).sum(0)) if totals else {}), **said}
        of_each = {
            f'{name}/{key}': value
            for name, (own, sums) in by_source.items()
            for key, value in means(own, sums).items()
            if len(by_source) > 1
        }
        self.writer.log(self.progress.step, {**found, **of_each, **said_of_each}, prefix='eval')
        self.console.note(f'evaluation after step {self.progress.step}: ' + listed(found))
        self._evaluated_as(found, [*(name for name in names if name not in (RESPONSES, UNSAID)), *self.task_names])

    def _evaluated(self, source: str, loader: Any) -> tuple[list[str], Tensor]:
        """What is told of the responses to held-out prompts of one source: the names, and `sums_of` over all ranks."""
        sums: list[Tensor] = []
        names: list[str] = []
        for prompts in loader.micro_batches(0):
            self.file_skips(gathered_lists(prompts.skipped, self.copies))
            sampling = self._sampling(EVALUATION_SEED, 1).of_evaluation()
            with self.as_evaluated():
                generated = self._generated(prompts.examples, sampling)
            if self.tasks is not None:
                self.tasks.add(source, generated)
            rollout = self._rewarded(generated, {})
            local = numbers_of(rollout, self._writes_tokens, self._acts)
            names = list(local)
            sums.append(sums_of(local))
        return names, self._reduce(torch.stack(sums).sum(0)) if sums else torch.zeros(2, 0)

    # One rollout

    def _rollout(self, loaded: LoaderStep) -> tuple[Rollout, float]:
        """All that is generated for one rollout, and the seconds of waiting for its prompts.

        While a rank has too few prompts whose responses differ in score, all go on with the next prompts of the loader
        as often as the algorithm allows and the epoch has some; a rank that has enough passes over its own.
        """
        examples = self._answered(loaded, 0)
        waited = loaded.waited + self._generate_ahead()
        rollout = self._rewarded(examples, self._unread)
        for number in range(1, self.algorithm.further_batches + 1):
            missing = self.algorithm.per_device_prompt_batch_size > sum(usable(rollout, self.cfgs).differing)
            if not self._sum([float(missing)])[0]:
                break
            loaded = next(self.loader_steps, None)
            if loaded is None:
                break
            self.progress.step_in_epoch += 1
            rollout = rollout.with_more(self._rewarded(self._answered(loaded, number, wanted=missing), self._unread))
            waited += loaded.waited
        return rollout, waited

    def _answered(self, loaded: LoaderStep, number: int, wanted: bool = True) -> list[Example]:
        """The prompts of the `number`th loader step of this rollout, with responses; none of them unless `wanted`."""
        self._skip(loaded.batches)
        examples = [example for example in examples_of(loaded) if wanted]
        with self._clock('generation'):
            ahead = self.pending.take()
        if ahead is not None:
            self._seconds['generation_ahead'] = self.pending.seconds
            return self._completed(examples, ahead)
        with self._as_sampled():
            return self._generated(examples, self._sampling_at(self.progress.step, number))

    def _as_sampled(self) -> AbstractContextManager[None]:
        """Puts the old policy in place where it samples."""
        return nullcontext() if self.old is None else self.old.in_place()

    def _generate_ahead(self) -> float:
        """Begins to generate the next rollout of the epoch, if settings say so; returns the seconds of waiting for it.

        The weights are those before the updates on the present one, the seed that of a run which waits for these.
        """
        step = self.progress.step + steps_of_rollout(self.cfgs, self.algorithm)
        loaded = self.loader_steps.peek() if self.cfgs.vllm_cfgs.vllm_async and step < self.steps else None
        if loaded is None:
            return 0.0
        with self._clock('sync'):
            self.rollouts.sync(self.progress.step)
            self.pending.begin(self.rollouts, examples_of(loaded), self._sampling_at(step, 0))
        return loaded.waited

    def _sampling_at(self, step: int, number: int) -> Sampling:
        # Far from the seeds of other rollouts, which differ by their steps.
        return self._sampling(self.cfgs.train_cfgs.seed + step + (number << 32), self.algorithm.num_generations)

    def _sampling(self, seed: int, responses: int) -> Sampling:
        return replace(self.sampling, responses=responses, seed=rank_seed(seed, rank() // self.copies))

    def _generated(self, examples: list[Example], sampling: Sampling) -> list[Example]:
        with self._clock('sync'):
            self.rollouts.sync(self.progress.step)
        with self._clock('generation'):
            return self._completed(examples, self.rollouts.generate(examples, sampling))

    def _completed(self, examples: list[Example], generated: Sequence[Sequence[Response]]) -> list[Example]:
        """The Examples with what was generated for them, episodes that failed left out and listed."""
        completed = complete(examples, generated)
        self._failed += self.failing.count(self.progress.step)
        # Of a prompt whose episodes failed nothing is left to learn from.
        return [example for example in completed if example.responses]

    def _rewarded(self, examples: list[Example], unread: dict[str, int]) -> Rollout:
        """The responses with what they are worth; adds up in `unread` how many a model could not read, by its name."""
        with self._clock('reward'):
            completions = completions_of(examples, self.spec)
            # Also by a rank that has nothing to reward: models are asked by all ranks together.
            rewards = {reward.name: numbers(reward.judge(completions)) for reward in self.rewards}
        for reward in self.rewards:
            found = reward.unread()
            unread[reward.name] = unread.get(reward.name, 0) + len(found)
            self.unread.add(self.progress.step, reward.name, found)
        rewards = at_limits(rewards, examples, self.cfgs)
        scores = weighted_sum(rewards, self._weights)
        check_scores(scores.tolist(), completions)
        return Rollout(examples, rewards, scores)

    def _shaped(self, rollout: Rollout) -> Tensor:
        """The scores that advantages are made of, `(R,)`: brought to scale, and less what length and no end cost."""
        scores = rollout.scores
        if self.cfgs.reward_cfgs.reward_aggregation == 'normalize_then_sum':
            scores = normalised_sum(rollout.rewards, self._weights, rollout.groups)
        if self.algorithm.normalize_reward:
            state = self.progress.state.get('rewards', dict(NOTHING_SEEN))
            state = merged(state, self._reduce(moments(scores, rollout.judged.float())))
            self.progress.state['rewards'] = state
            scores = normalised(scores, state).where(rollout.judged, scores)
        return penalised(scores, rollout.responses, self.algorithm, self.cfgs.model_cfgs.max_new_tokens)

    def _learn_from(self, rollout: Rollout) -> list[Example]:
        """Returns what is trained on of a rollout, with what the losses will read of every token."""
        sizes = [len(example.responses) for example in rollout.examples]
        shaped = self._shaped(rollout).split(sizes)
        kept = self.algorithm.kept(shaped)
        examples = [
            replace(example, responses=[example.responses[number] for number in numbers])
            for example, numbers in zip(rollout.examples, kept, strict=True)
        ]
        with self._clock('scoring'):
            bootstrap = self._scored(examples)
        responses = list(responses_of(examples))
        lengths = torch.tensor([response.units for response in responses], dtype=torch.long)
        groups = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(own) for own in kept], dtype=torch.long))
        costs = rollout.rewards.get(COST)
        all_costs = [] if costs is None else costs.tolist()
        experience = Experience(
            scores=kept_of(shaped, kept),
            groups=groups,
            segments=torch.arange(len(responses)).repeat_interleave(lengths),
            finished=torch.tensor([response.finished for response in responses], dtype=torch.bool),
            logprobs=None if self._updates_once else joined(examples, 'old'),
            reference=None if self.reference is None else joined(examples, 'reference'),
            values={role: joined(examples, f'values/{role}') for role in self.critics},
            bootstrap={role: bootstrap[f'values/{role}'] for role in self.critics if self.algorithm.bootstraps},
            costs=None if costs is None else kept_of(costs.split(sizes), kept),
            all_costs=gathered_lists(all_costs, self.copies),
            **credited(examples, self.cfgs),
        )
        state = self.progress.state.setdefault('algorithm', {})
        for name, values in self.algorithm.advantages(experience, self._reduce, state).items():
            spread(examples, name, values)
        return examples

    def _scored(self, examples: list[Example]) -> dict[str, Tensor]:
        """Writes into each response what the losses read beside what they compute, see `score`."""
        policy, algorithm = self.engine.policy.collate, self.algorithm
        of_policy = policy, self.engine.device
        asked = partial(asking, algorithm=algorithm, meets=self.spec.meets)
        scorings = []
        if not self._updates_once:
            scorings.append(Scoring('old', asked('old', self.engine.infer), *of_policy, self._as_sampled))
        if self.reference is not None:
            scorings.append(Scoring('reference', asked('reference', self.reference), *of_policy))
        for role, (critic, _) in self.critics.items():
            scorer = partial(critic.infer, bootstrap=algorithm.bootstraps)
            scorings.append(Scoring(f'values/{role}', scorer, critic.policy.collate, critic.device))
        if not scorings:
            return {}
        split = split_for_scoring(examples, self.cfgs, algorithm, self._size, policy.cost)
        return score(examples, *split, scorings)

    @property
    def _updates_once(self) -> bool:
        # The one update on a rollout finds the scores of the policy that sampled by itself.
        return steps_of_rollout(self.cfgs, self.algorithm) == 1 and not self.algorithm.reads_old

    @property
    def _weights(self) -> dict[str, float]:
        """The weight of each reward in the score; a cost is none."""
        return {reward.name: reward.weight for reward in self.rewards if reward.name != COST}

    @property
    def _acts(self) -> bool:
        """Whether responses are episodes in an environment."""
        return self.cfgs.environment_cfgs.environment is not None

    @property
    def _writes_tokens(self) -> bool:
        """Whether the units of responses are tokens."""
        return self.spec.unit == 'token'

    def _update(self, trained: list[Example]) -> tuple[list[StepResult], dict[str, list[StepResult]]]:
        results: list[StepResult] = []
        values: dict[str, list[StepResult]] = {role: [] for role in self.critics}
        objective = OnPolicy(self.algorithm) if self._updates_once else self.algorithm
        for iteration in range(self.algorithm.update_iters):
            # Every rank shuffles its own responses, the same way when the run is resumed.
            own = rank() // self.copies
            order = random.Random(f'{self.cfgs.train_cfgs.seed} {self.progress.step} {iteration} {own}')
            examples = order.sample(trained, len(trained))
            cost = self.engine.policy.collate.cost
            for micro_batches in split_into_steps(examples, self.cfgs, self.algorithm, self._size, cost):
                if self.progress.step == self.steps:
                    break
                supervised = self._supervised()
                if self.progress.step < self.algorithm.warmup:
                    results.append(StepResult({}, None, {}, applied=False))
                else:
                    started = time.perf_counter()
                    batches, result = self._updated(self.engine, objective, [*micro_batches, *supervised])
                    if self.meter is not None:
                        self._policy_seconds += time.perf_counter() - started
                        policy = self.engine.policy
                        self._flops += sum((own for batch in batches for own in policy.flops(batch).values()), Flops())
                    self._concluded(batches, result)
                    results.append(result)
                for role, (critic, algorithm) in self.critics.items():
                    batches, result = self._updated(critic, algorithm, micro_batches)
                    if not (result.applied or result.empty):
                        self._nonfinite(batches, result)
                    values[role].append(result)
                self.progress.step += 1
        if self.ptx is not None:
            self.file_skips(gathered_lists(self._unusable, self.copies))
            self._unusable = []
        self.progress.step_in_epoch += 1
        self.progress.cursor = self.training.sampler.cursor(self.progress.epoch, self.progress.step_in_epoch)
        return results, values

    def _updated(
        self, engine: Engine, objective: Any, micro_batches: list[list[Example]]
    ) -> tuple[list[Batch], StepResult]:
        batches = [engine.policy.collate(examples) for examples in micro_batches]
        return batches, engine.train_step(batches, ByKind(objective))

    def _supervised(self) -> list[list[Example]]:
        """The micro-batches of given responses in the next optimizer step, equally many on every rank."""
        if self.ptx is None:
            return []
        rows = next(self._rows)
        self._unusable += rows.skipped
        self._truncated += sum(response.truncated for example in rows.examples for response in example.responses)
        return split_step(rows.examples, self.cfgs, self._size)

    def _size(self, examples: Sequence[Example]) -> int:
        """What a micro-batch takes of its budget: for policy and critics each, which may lay it out differently."""
        engines = [self.engine, *(critic for critic, _ in self.critics.values())]
        return max(engine.policy.collate.size(examples) for engine in engines)

    # What is told

    def _skip(self, prompts: Sequence[Prompts]) -> None:
        skipped = gathered_lists([item for own in prompts for item in own.skipped], self.copies)
        self.progress.seen += int(self._sum([float(sum(len(p.examples) for p in prompts))])[0]) + len(skipped)
        if skipped:
            self.file_skips(skipped)

    def _report(
        self,
        generated: Rollout,
        trained: list[Example],
        results: list[StepResult],
        values: Mapping[str, list[StepResult]],
        took: float,
        waited: float,
    ) -> None:
        sources = source_names(self.training.dataset.sources)
        rollout = rollout_metrics(generated, trained, sources, self._reduce, self._writes_tokens, self._acts)
        metrics = {**rollout, **combined(results).numbers, **self._of_steps(results[-1])}
        metrics |= {f'unread/{name}': float(number) for name, number in self._unread.items() if number}
        if self._acts:
            metrics['failed_episodes'] = float(self._failed)
        if self.ptx is not None:
            metrics['truncated_answers'] = self._sum([float(self._truncated)])[0]
        for role, own in values.items():
            metrics |= critic_metrics(role, own)
        if self.algorithm.num_generations > 1:
            metrics |= uninformative(generated, self._reduce)
        if self.cfgs.vllm_cfgs.vllm_async:
            metrics |= staleness(generated, self.progress.step - len(results), self._reduce)
        metrics |= {name: value for name, value in self.progress.state['algorithm'].items() if isinstance(value, float)}
        unit, each = ('tokens', rollout.get('response_length', 0.0)) if self._writes_tokens else ('samples', 1.0)
        speed = {f'{unit}_per_second': each * rollout['responses'] / took}
        timings = {
            **{f'seconds/{name}': seconds for name, seconds in self._seconds.items()},
            **speed,
            'seconds_per_step': took,
            'data_wait': waited / took,
            'peak_memory': float(peak_memory()),
            **self._measured(took, waited),
        }
        step = self.progress.step
        self.writer.log(step, metrics, timings=timings)
        shown = [name for name in ('reward', 'response_length', 'loss', 'kl', 'entropy') if name in metrics]
        used = {'mfu': timings['mfu']} if 'mfu' in timings else {}
        self.console.report(step, {**{key: metrics[key] for key in shown}, **speed, **used})

    def _measured(self, took: float, waited: float) -> dict[str, float]:
        """How well the devices were used in the updates of the policy, and where the time of the rollout went."""
        if self.meter is None:
            return {}
        return self.meter.read(self._flops / self.copies, self._policy_seconds, took, {'data': waited, **self._seconds})

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with record_function(name):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def _reduce(self, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.to(self.engine.device)).cpu() / self.copies

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        return self._reduce(torch.tensor(numbers, dtype=torch.float64)).tolist()
