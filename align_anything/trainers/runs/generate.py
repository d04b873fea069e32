"""Answers of a checkpoint to the prompts of a dataset: generated, scored, and written batch by batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align_anything.algorithms.generate import Generate
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.online import COST
from align_anything.configs.resolve import Resolved
from align_anything.configs.saving import dump_resolved
from align_anything.core.distributed import all_gather_object, broadcast_object, is_main, rank, world_size
from align_anything.core.errors import DataError, SettingsError
from align_anything.core.files import atomic_write_json, atomic_write_text
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION, Example, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.loader import Loader
from align_anything.datasets.prompts import Prompts, as_prompts
from align_anything.datasets.sampler import ChunkSampler
from align_anything.datasets.skips import SkipReport
from align_anything.engines.process_group import join_process_group
from align_anything.environments.steps import SUCCESS
from align_anything.losses.shaping import weighted_sum
from align_anything.metrics.samples import FILE
from align_anything.reporting.appended import AppendedFiles
from align_anything.reporting.console import StageConsole
from align_anything.reporting.media_files import MediaFiles
from align_anything.rewards.base import Completion, Reward, check_scores
from align_anything.rollouts.experience import complete
from align_anything.rollouts.restricted import seed_of
from align_anything.trainers.loops.judging import completions_of, numbers
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.acting import problems_of_acting
from align_anything.trainers.runs.begin import SETTINGS_FILE, make_folders
from align_anything.trainers.runs.data import open_sources, probe, probed, unread_dataset
from align_anything.trainers.runs.generations import Record, Scored, asked_of, numbers_of, pair_of, record_of, turns_of
from align_anything.trainers.runs.generator import Generator, generator_of, open_spec
from align_anything.trainers.runs.judges import open_judges
from align_anything.trainers.runs.media_codes import prepare_codes
from align_anything.trainers.runs.output_folder import check_unused, require_shared
from align_anything.trainers.runs.prepared import prepare_latents
from align_anything.trainers.runs.rewarding import make_rewards
from align_anything.trainers.runs.roles import judges_of, require_head, spec_of_judge
from align_anything.trainers.runs.row_environments import check_row_environments
from align_anything.trainers.runs.sampling import guided_prompts, is_guided

logger = get_logger(__name__)

PAIRS_FILE, STATE_FILE, SUMMARY_FILE = 'pairs.jsonl', 'progress.json', 'summary.json'
MEDIA, COUNTS, FAILED = 'media', 'failures', 'failed_episodes'
MAY_DIFFER = {
    *('train_cfgs.resume', 'train_cfgs.per_device_eval_batch_size', 'train_cfgs.ds_cfgs', 'data_cfgs.num_workers'),
    *('data_cfgs.media_cache_mb', 'data_cfgs.max_skipped_ratio', 'model_cfgs.media_code_dir'),
    *(f'model_cfgs.remote_rm_{key}' for key in ('url', 'timeout', 'retry_times', 'batch_size')),
    *('diffusion_cfgs.prepared_dir', 'vllm_cfgs.vllm_server_urls', 'vllm_cfgs.vllm_server_timeout'),
    'vllm_cfgs.vllm_gpu_memory_utilization',
}
"""Settings that say where something lies or how fast it goes, and not what is generated."""


NUMBERS = ('prompts', 'responses', 'finished', 'units', 'pairs', 'ties')
"""What is counted and told."""


@dataclass
class Totals:
    """What a run has done so far, added up over all ranks."""

    prompts: int = 0
    responses: int = 0
    finished: int = 0
    units: int = 0
    pairs: int = 0
    ties: int = 0
    unsaid: int = 0
    failed_episodes: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        """Adds those of another."""
        for name in (*NUMBERS, 'unsaid', FAILED):
            vars(self)[name] += vars(other)[name]
        for name, value in other.sums.items():
            self.told(name, value, other.counts[name])

    def told(self, name: str, value: float, count: int = 1) -> None:
        """Adds numbers to a mean."""
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def summary(self) -> dict[str, Any]:
        """The counts, and the means of the scores."""
        # Where others were told of, episodes of whose success nobody told had none, and without costs cost nothing.
        more = {SUCCESS: self.unsaid, COST: max(0, self.counts.get('turns', 0) - self.counts.get(COST, 0))}
        means = {name: self.sums[name] / (self.counts[name] + more.get(name, 0)) for name in sorted(self.sums)}
        failed = {FAILED: self.failed_episodes} if self.failed_episodes else {}
        return {**{name: vars(self)[name] for name in NUMBERS}, **failed, 'means': means}


@dataclass
class Chunk:
    """What came of a chunk of rows."""

    records: list[Record] = field(default_factory=list)
    pairs: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unread: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)


def generate(
    pair: Pair, resolved: Resolved[GenerationRunCfgs, Generate], check: Callable[[ExampleDataset], None] | None = None
) -> None:
    """Answers the prompts of `train_datasets` into `<output_dir>/generations.jsonl`, their media beside it.

    `check` is shown the prompts before weights are loaded, and raises where something is wrong with them.
    """
    algorithm = resolved.algorithm
    problems = problems_of_acting(resolved.cfgs, algorithm)
    if problems:
        raise SettingsError(problems)
    if not resolved.dry_run:
        _check_resume(resolved.cfgs)
        check_unused(resolved.cfgs)
    sources = open_sources(resolved.cfgs, pair.writes, resolved.cfgs.environment_cfgs.environment is not None)
    probe(sources, pair, algorithm, resolved.cfgs.data_cfgs.train_on)
    check_row_environments(sources.training, resolved.cfgs.environment_cfgs)
    acts, train_on = ACTION in pair.writes, resolved.cfgs.data_cfgs.train_on
    rows = unread_dataset(sources.training, pair, algorithm, train_on) if acts else None
    resolved, pair, spec = open_spec(resolved, pair, rows)
    cfgs = resolved.cfgs
    models = cfgs.model_cfgs
    rewards = make_rewards(cfgs) if _asks_rewards(cfgs) else []
    judges = judges_of(cfgs, algorithm)
    for judge in judges.values():
        require_head(judge.source)
    specs = {name: spec_of_judge(cfgs, judge, pair) for name, judge in judges.items()}
    reserved = models.max_new_tokens if spec.unit == 'token' else 0
    dataset = probed(sources.training, cfgs, pair, spec, algorithm, reserved)
    if check is not None:
        check(dataset)
    if resolved.dry_run:
        _tell_plan(resolved, dataset, [*(reward.name for reward in rewards), *judges])
        return
    output_dir = make_folders(cfgs, algorithm)
    if 'RANK' in os.environ:
        join_process_group()
        if pair.writes:
            require_shared(output_dir, 'logger_cfgs.output_dir', 'All ranks write their media there')
    files, kept = _opened_files(output_dir, resolved, len(dataset))
    if is_guided(models):
        (dataset,) = guided_prompts([dataset])
    prepare_codes(cfgs, spec, [dataset])
    prepare_latents(cfgs, spec, [dataset], is_guided(models))
    size = algorithm.per_device_prompt_batch_size
    sampler = ChunkSampler(len(dataset), size, world_size(), rank(), kept.get('chunks', 0))
    report = SkipReport(output_dir, kept.get('skipped', 0), kept.get('filtered', 0))
    totals = Totals(**kept.get('totals', {}))
    if sampler.steps_in(0):
        generator, acts = generator_of(resolved, pair, spec, live=False), cfgs.environment_cfgs.environment is not None
        if acts:
            generator.rollouts.counts = kept.get(COUNTS, [])
        rewards += open_judges(cfgs, judges, specs, pair, algorithm)
        # Files of media are this rank's own; those past the last whole chunk are gone by now.
        answers = Answers(cfgs, generator, dataset, rewards, MediaFiles(output_dir, sys.maxsize, MEDIA))
        loader = Loader(dataset, sampler, as_prompts, cfgs.data_cfgs.num_workers)
        with closing(loader), closing(StageConsole('generate', sampler.steps_in(0))) as console:
            for step, prompts in enumerate(loader.micro_batches(0)):
                rows = range(sampler.chunk(step) * size, min((sampler.chunk(step) + 1) * size, len(dataset)))
                made = all_gather_object(answers.to(rows, prompts))
                for chunk in made:
                    totals.add(chunk.totals)
                report.add([item for chunk in made for item in chunk.skipped])
                known = {
                    'chunks': min(sampler.start + (step + 1) * world_size(), sampler.chunks),
                    'skipped': len(report),
                    'filtered': report.filtered,
                    'totals': vars(totals),
                    **({COUNTS: generator.rollouts.counts} if acts else {}),
                    'identity': identity(resolved, len(dataset)),
                }
                if files is not None:
                    records = {FILE: [record for chunk in made for record in chunk.records]}
                    if algorithm.make_pairs:
                        records[PAIRS_FILE] = [record for chunk in made for record in chunk.pairs]
                    files.append(records, known)
                _warn_unread([item for chunk in made for item in chunk.unread])
                _warn_failed([item for chunk in made for item in chunk.failed])
                console.advance(step + 1)
    report.check(len(dataset), cfgs.data_cfgs.max_skipped_ratio)
    report.conclude()
    _conclude(output_dir, resolved, totals)


@dataclass(frozen=True)
class Answers:
    """Answers the prompts of a chunk.

    Attributes:
        cfgs: of the run.
        generator: what answers.
        dataset: the rows.
        rewards: what scores the answers.
        media: where media go.
    """

    cfgs: GenerationRunCfgs
    generator: Generator
    dataset: ExampleDataset
    rewards: Sequence[Reward]
    media: MediaFiles

    def to(self, rows: Sequence[int], prompts: Prompts) -> Chunk:
        """Returns what comes of the rows of these numbers, of which `prompts` are left. Every rank calls it."""
        numbered = _numbered(rows, prompts.examples, self.dataset)
        train = self.cfgs.train_cfgs
        seeds = tuple(seed_of(train.seed, row) for row in numbered)
        sampling = replace(self.generator.sampling, responses=train.num_generations, seeds=seeds)
        examples = complete(prompts.examples, self.generator.generate(prompts.examples, sampling))
        failed = self._failed(examples)
        reasons = {item.source: item.reason for item in failed}
        lost = [Skipped(one.source, reasons[one.source]) for one in examples if not one.responses]
        numbered = [row for row, example in zip(numbered, examples, strict=True) if example.responses]
        examples = [example for example in examples if example.responses]
        completions = completions_of(examples, self.generator.spec)
        scores = self._scores(completions)
        unread = [item for own in self.rewards for item in own.unread()]
        chunk = Chunk(skipped=[*prompts.skipped, *lost], unread=unread, failed=failed)
        chunk.totals.failed_episodes = len(failed)
        at = 0
        for row, example in zip(numbered, examples, strict=True):
            own = range(at, at + len(example.responses))
            at = own.stop
            scored = Scored(
                {name: [values[number] for number in own] for name, values in scores.items() if name},
                [scores[''][number] for number in own],
            )
            self._add(chunk, row, example, [completions[number] for number in own], scored)
        return chunk

    def _failed(self, examples: Sequence[Example]) -> list[Skipped]:
        """The episodes of this rank that failed."""
        if self.cfgs.environment_cfgs.environment is None:
            return []
        own = {example.source for example in examples}
        return [item for item in self.generator.rollouts.failed() if item.source in own]

    def _scores(self, completions: Sequence[Completion]) -> dict[str, list[float | None]]:
        """What each reward gives, by name, and under no name the weighted sums."""
        if not self.rewards:
            return {'': [None] * len(completions)}
        given = {reward.name: reward.judge(completions) for reward in self.rewards}
        found = {name: numbers(values) for name, values in given.items()}
        sums = weighted_sum(found, {reward.name: reward.weight for reward in self.rewards}).tolist()
        check_scores(sums, completions)
        judged = [any(values[number] is not None for values in given.values()) for number in range(len(sums))]
        return {**given, '': [total if known else None for total, known in zip(sums, judged, strict=True)]}

    def _add(self, chunk: Chunk, row: int, example: Example, completions: Sequence[Completion], scored: Scored) -> None:
        conversation = self.dataset.formatted(row)
        assert not isinstance(conversation, Skipped), 'the row was read before'
        messages = asked_of(example, conversation[0], row, self.media)
        names = [f'response_{number}' for number in range(len(example.responses))]
        files = [
            self.media.write(row, name, response.parts) for name, response in zip(names, example.responses, strict=True)
        ]
        turns = turns_of(example, row, self.media)
        chunk.records.append(record_of(row, example, messages, files, scored, completions, turns))
        totals = chunk.totals
        totals.prompts += 1
        totals.responses += len(example.responses)
        totals.finished += sum(response.finished for response in example.responses)
        totals.units += sum(response.units for response in example.responses)
        for name, values in {**scored.by_name, 'score': scored.totals}.items():
            for value in values:
                if value is not None:
                    totals.told(name, value)
        for response in example.responses:
            for name, value in ({} if response.episode is None else numbers_of(response.episode)).items():
                if value is None:
                    totals.unsaid += 1
                else:
                    totals.told(name, value)
        if scored.best is not None:
            totals.told('best_score', scored.totals[scored.best])
        if self.cfgs.train_cfgs.make_pairs:
            made = pair_of(completions, messages, files, scored)
            chunk.pairs += [] if made is None else [made]
            totals.pairs += made is not None
            totals.ties += made is None


def identity(resolved: Resolved[GenerationRunCfgs, Generate], rows: int) -> dict[str, Any]:
    """The settings without which a run that goes on would not be the same run, and how many rows it has."""
    groups = resolved.cfgs.model_dump(mode='json', exclude={'logger_cfgs'})
    values = {f'{group}.{key}': value for group, keys in groups.items() for key, value in keys.items()}
    spared = MAY_DIFFER | {f'train_cfgs.{key}' for key in type(resolved.algorithm).reads_afterwards}
    return {**{path: value for path, value in values.items() if path not in spared}, 'rows': rows}


def _opened_files(
    output_dir: Path, resolved: Resolved[GenerationRunCfgs, Generate], rows: int
) -> tuple[AppendedFiles | None, Mapping[str, Any]]:
    """Opens the files on the main rank, and tells all where they stand.

    Raises SettingsError, on all ranks, for settings that are not those of what they hold.
    """
    files, problems, kept = None, [], {}
    if is_main():
        resume = resolved.cfgs.train_cfgs.resume is not None
        names = [FILE, *([PAIRS_FILE] if resolved.algorithm.make_pairs else [])]
        try:
            problems = _problems_of_resuming(output_dir, resolved, rows) if resume else []
            files = None if problems else AppendedFiles(output_dir, names, STATE_FILE, resume)
        except SettingsError as error:
            problems = error.problems
        if files is not None:
            kept = files.kept
            if not resume:
                for name in (STATE_FILE, SUMMARY_FILE, *({PAIRS_FILE} - {*names})):
                    (output_dir / name).unlink(missing_ok=True)
            first = kept.get('chunks', 0) * resolved.algorithm.per_device_prompt_batch_size
            MediaFiles(output_dir, first - 1 if resume else None, MEDIA)
            atomic_write_text(output_dir / SETTINGS_FILE, dump_resolved(resolved.cfgs))
    problems, kept = broadcast_object((problems, kept))
    if problems:
        raise SettingsError(problems)
    if kept:
        logger.info('%s: goes on behind %d prompts', output_dir / FILE, kept['totals']['prompts'])
    return files, kept


def _problems_of_resuming(output_dir: Path, resolved: Resolved[GenerationRunCfgs, Generate], rows: int) -> list[str]:
    theirs = AppendedFiles.state_of(output_dir, STATE_FILE).get('identity')
    ours = identity(resolved, rows)
    problems = [
        f'--resume: {path} is {value!r}, but {output_dir / FILE} was written with {theirs.get(path)!r}.'
        for path, value in ours.items()
        if theirs is not None and theirs.get(path) != value
    ]
    return [*problems, '--resume: give the same, or start afresh in another output_dir.'] if problems else []


def _check_resume(cfgs: GenerationRunCfgs) -> None:
    if cfgs.train_cfgs.resume not in (None, 'auto'):
        raise SettingsError(
            [
                f'train_cfgs.resume: {cfgs.train_cfgs.resume} is a folder; generate goes on with what is in its '
                'output_dir: --resume auto.'
            ]
        )


def _asks_rewards(cfgs: GenerationRunCfgs) -> bool:
    models = cfgs.model_cfgs
    named = (cfgs.reward_cfgs.reward_functions, models.reward_model_name_or_path, models.remote_rm_url)
    return any(map(bool, (*named, cfgs.environment_cfgs.environment)))


def _numbered(rows: Sequence[int], examples: Sequence[Example], dataset: ExampleDataset) -> list[int]:
    """The number of the row that each example is of, in order."""
    found, left = [], iter(rows)
    for example in examples:
        found.append(next(row for row in left if dataset.name_of(row) == example.source))
    return found


def _warn_unread(unread: Sequence[Skipped]) -> None:
    if unread and is_main():
        logger.warning(
            'a model could not read %d response(s), which got its unread score; the first is of %s: %s',
            len(unread),
            unread[0].source,
            unread[0].reason,
        )


def _warn_failed(failed: Sequence[Skipped]) -> None:
    if failed and is_main():
        logger.warning(
            '%d episode(s) failed and are left out, of a prompt with fewer than two others all; the first is of %s: %s',
            len(failed),
            failed[0].source,
            failed[0].reason,
        )


def _tell_plan(resolved: Resolved[GenerationRunCfgs, Generate], dataset: ExampleDataset, names: Sequence[str]) -> None:
    first = next((item for item in map(dataset.__getitem__, range(len(dataset))) if isinstance(item, Example)), None)
    if not is_main():
        return
    algorithm, source = resolved.algorithm, resolved.cfgs.model_cfgs.model_name_or_path
    logger.info(
        'would answer %d prompts with %s, %d response(s) each%s',
        len(dataset),
        source,
        algorithm.num_generations,
        f', scored by {", ".join(names)}' if names else '',
    )
    if first is not None:
        logger.info('the first prompt, of %s, has %d units', first.source, len(first.prompt))
    logger.info('This was a dry run: nothing was generated.')


def _conclude(output_dir: Path, resolved: Resolved[GenerationRunCfgs, Generate], totals: Totals) -> None:
    """Tells what was done. Raises DataError when there is nothing."""
    if not totals.prompts:
        raise DataError('no prompt could be answered; the reasons are in skipped_samples.jsonl.')
    if not is_main():
        return
    atomic_write_json(output_dir / SUMMARY_FILE, totals.summary())
    logger.info('generations: %s (%d prompts)', output_dir / FILE, totals.prompts)
    if resolved.algorithm.make_pairs:
        logger.info(
            'pairs: %s (%d, and %d prompts left out whose responses are worth the same)',
            output_dir / PAIRS_FILE,
            totals.pairs,
            totals.ties,
        )
