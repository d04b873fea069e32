"""One evaluation: the answers of a checkpoint, what metrics say of them, and the files that tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from align_anything.algorithms.evaluate import Evaluate
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.core.distributed import is_main
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import atomic_write_json, atomic_write_text
from align_anything.core.logging import get_logger
from align_anything.evaluation.harness import check_known, run_harness
from align_anything.evaluation.page import page_of
from align_anything.evaluation.results import (
    Resampling,
    as_tables,
    comparison_of,
    per_response,
    result_of,
    rewards_of,
)
from align_anything.metrics.base import Measured, Metric, make_metrics, needs_extra, unwritten
from align_anything.metrics.samples import REFERENCE, Samples, read_samples
from align_anything.trainers.launch import quieten_libraries
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.begin import SETTINGS_FILE, make_folders
from align_anything.trainers.runs.eval_tasks import try_out
from align_anything.trainers.runs.generate import FAILED, SUMMARY_FILE, generate

logger = get_logger(__name__)

RESULTS_FILE, SAMPLES_FILE, PAGE_FILE = 'results.json', 'samples.jsonl', 'results.html'
JUDGES = (
    *('model_cfgs.reward_model_name_or_path', 'model_cfgs.remote_rm_url', 'reward_cfgs.reward_functions'),
    'environment_cfgs.environment',
)
Results = dict[str, Any]
Found = Mapping[str, tuple[Metric, Measured]]


def evaluate(pair: Pair, resolved: Resolved[GenerationRunCfgs, Evaluate]) -> Results | None:
    """Evaluates a checkpoint, and writes `<output_dir>/results.json`.

    Beside it come `samples.jsonl`, `results.html`, and what `generate` writes. Returns the results, on the main rank,
    and None after a dry run. Every rank calls it. What is wrong with tasks and settings is told before a model loads.
    """
    metrics, others = prepared(pair, resolved)
    quieten_libraries()
    algorithm, cfgs = resolved.algorithm, resolved.cfgs
    if algorithm.reads_rows:
        generate(pair, resolved, lambda dataset: try_out(metrics, dataset, 'tasks'))
    elif not resolved.dry_run:
        make_folders(cfgs, algorithm)
    if resolved.dry_run or not is_main():
        return None
    folder = Path(cfgs.logger_cfgs.output_dir)
    results: Results = {'model': cfgs.model_cfgs.model_name_or_path, 'pair': pair.name, 'metrics': {}}
    samples, found = Samples(folder, []), {}
    try:
        if algorithm.reads_rows:
            samples = read_samples(folder)
            found = {**measured(metrics, samples, others), **rewards_of(samples)}
            resampling = Resampling(algorithm.bootstrap_samples, cfgs.train_cfgs.seed)
            results |= _results_of(samples, metrics, found, others, resampling) | _failed_in(folder)
            _write_samples(folder, samples, found)
        if algorithm.harness_tasks:
            results['metrics'] |= run_harness(resolved)
    except AlignAnythingError:
        if algorithm.reads_rows:
            logger.info('the answers are kept in %s: mend the tasks, and go on with --resume auto', folder)
        raise
    atomic_write_json(folder / RESULTS_FILE, results)
    atomic_write_text(folder / PAGE_FILE, page_of(results, samples, found, others))
    logger.info('results: %s and %s', folder / RESULTS_FILE, PAGE_FILE)
    return results


def shown(results: Results) -> list[Table]:
    """Returns the tables of results for a terminal."""
    tables = []
    for title, heads, lines in as_tables(results):
        table = Table(*heads, title=title, title_justify='left')
        for line in lines:
            table.add_row(*line)
        tables.append(table)
    return tables


def prepared(pair: Pair, resolved: Resolved[GenerationRunCfgs, Evaluate]) -> tuple[list[Metric], Samples | None]:
    """Returns the metrics of a run, and the samples that it is compared with.

    Raises SettingsError for tasks that cannot be done, all that is wrong at once, and DataError for a folder to compare
    with that holds no samples.
    """
    algorithm, cfgs = resolved.algorithm, resolved.cfgs
    scored = any(bool(_value(cfgs, path)) for path in JUDGES)
    if not algorithm.tasks and not scored:
        raise SettingsError(
            ['train_cfgs.tasks: is required: name what to measure, for instance --tasks [exact_match].']
        )
    if not cfgs.logger_cfgs.output_dir:
        raise SettingsError(['logger_cfgs.output_dir: is required: name the folder that the run writes to.'])
    if algorithm.harness_tasks:
        needs_extra('lm_eval', 'eval', 'train_cfgs.tasks: a task of lm-evaluation-harness')
        check_known(algorithm)
    metrics = make_metrics(algorithm.tasks, algorithm.task_kwargs)
    problems = unwritten(metrics, pair)
    for metric in metrics:
        if metric.traits.compares and algorithm.compare_with is None:
            problems.append(
                f"train_cfgs.tasks: '{metric.name}' compares two checkpoints: evaluate the other one first, and name "
                'its output_dir as compare_with.'
            )
        if metric.name == 'win_rate' and not scored:
            problems.append(
                "train_cfgs.tasks: 'win_rate' compares scores: give reward_model_name_or_path, reward_functions or "
                'remote_rm_url.'
            )
    if problems:
        raise SettingsError(problems)
    if algorithm.compare_with is None:
        return metrics, None
    others = read_samples(algorithm.compare_with)
    if any(metric.name == 'win_rate' for metric in metrics):
        _check_scored_alike(cfgs, others.folder)
    return metrics, others


def _check_scored_alike(cfgs: GenerationRunCfgs, folder: Path) -> None:
    """Raises SettingsError where the other run was scored by other rewards: their numbers say nothing of each other."""
    file = folder / SETTINGS_FILE
    theirs = yaml.safe_load(file.read_text(encoding='utf-8')) if file.is_file() else {}
    problems = []
    for path in JUDGES:
        group, key = path.split('.')
        other = (theirs.get(group) or {}).get(key)
        if (other or None) != (_value(cfgs, path) or None):
            problems.append(
                f'{path}: is {_value(cfgs, path)!r}, but the responses in {folder} were scored with {other!r}; '
                'win_rate compares scores of the same rewards.'
            )
    if problems:
        raise SettingsError(problems)


def _value(cfgs: GenerationRunCfgs, path: str) -> Any:
    group, key = path.split('.')
    return getattr(getattr(cfgs, group), key)


def _results_of(
    samples: Samples, metrics: Sequence[Metric], found: Found, others: Samples | None, resampling: Resampling
) -> Results:
    """What the results tell of samples, of which metrics found something, and how they differ from others."""
    finished = sum(sample.response['finish_reason'] == 'stop' for sample in samples)
    results: Results = {
        'prompts': len(samples.by_prompt),
        'responses': len(samples),
        'finished': finished,
        'bootstrap': {'samples': resampling.samples, 'seed': resampling.seed},
        'metrics': {name: result_of(metric, own, samples, resampling) for name, (metric, own) in found.items()},
    }
    if others is not None:
        if samples.by_prompt.keys().isdisjoint(others.by_prompt):
            logger.warning(
                'train_cfgs.compare_with: %s has none of these prompts, so nothing is compared: evaluate both '
                'checkpoints on the same data, in the same order',
                others.folder,
            )
        single = [metric for metric in metrics if not metric.traits.compares]
        theirs = {**measured(single, others, None), **rewards_of(others)}
        told = {
            name: comparison_of(metric, (own, samples), (theirs[name][1], others), resampling)
            for name, (metric, own) in found.items()
            if name in theirs
        }
        results['comparison'] = {'with': str(others.folder), 'metrics': told}
    return results


def _failed_in(folder: Path) -> Results:
    """How many episodes failed in the environment, which are no part of the metrics; nothing where none did."""
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding='utf-8'))
    return {FAILED: summary[FAILED]} if FAILED in summary else {}


def measured(metrics: Sequence[Metric], samples: Samples, others: Samples | None) -> dict[str, tuple[Metric, Measured]]:
    """Returns what metrics say of samples, by name; those that compare are given the others too."""
    found = {}
    for metric in metrics:
        logger.info('measuring %s', metric.name)
        given = (samples, others) if metric.traits.compares else (samples,)
        found[metric.name] = (metric, metric.measure(*given))
    return found


def _write_samples(folder: Path, samples: Samples, found: Found) -> None:
    lines = []
    for number, sample in enumerate(samples):
        line = {'row': sample.row, 'number': sample.number, 'source': sample.source, 'text': sample.text}
        if sample.response.get('media'):
            line['media'] = sample.response['media']
        if REFERENCE in sample.record:
            line[REFERENCE] = sample.record[REFERENCE]
        line['metrics'] = {name: per_response(own, number) for name, (_, own) in found.items() if own.value is None}
        lines.append(json.dumps(line, ensure_ascii=False) + '\n')
    atomic_write_text(folder / SAMPLES_FILE, ''.join(lines))
