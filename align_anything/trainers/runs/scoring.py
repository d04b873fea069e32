"""Scores of a trained reward or cost model for every answer of a dataset."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, is_main
from align_anything.core.errors import DataError, ModelError
from align_anything.core.files import atomic_write_json, atomic_write_text, sync_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.skips import SkipReport
from align_anything.engines.process_group import join_process_group
from align_anything.models.family import FamilySpec
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import make_collator, open_scorer
from align_anything.trainers.runs.begin import make_folders
from align_anything.trainers.runs.data import loader_in_order, open_run, probed
from align_anything.trainers.runs.media_codes import prepare_codes
from align_anything.trainers.runs.output_folder import check_unused
from align_anything.trainers.runs.roles import require_head

logger = get_logger(__name__)

SCORES_FILE, SUMMARY_FILE, HISTOGRAM_FILE = 'scores.jsonl', 'summary.json', 'histogram.png'
BINS = 20
CALIBRATION_BINS = 10
Record = dict[str, Any]


def score(pair: Pair, resolved: Resolved) -> None:
    """Scores the rows of `train_datasets` into `<output_dir>/scores.jsonl`, with a summary and a histogram."""
    cfgs = resolved.cfgs
    check_unused(cfgs)
    output_dir = make_folders(cfgs, resolved.algorithm)
    require_head(cfgs.model_cfgs.model_name_or_path)
    join_process_group()
    sources, spec = open_run(cfgs, pair, resolved.algorithm)
    dataset = probed(sources.training, cfgs, pair, spec, resolved.algorithm)
    prepare_codes(cfgs, spec, [dataset])
    records, skipped = _scored(cfgs, pair, resolved, spec, dataset)
    report = SkipReport(output_dir)
    report.add(skipped)
    report.check(len(dataset), cfgs.data_cfgs.max_skipped_ratio)
    report.conclude()
    if is_main():
        write_scores(output_dir, in_order(records, dataset))
        logger.info('scores: %s', output_dir / SCORES_FILE)


def in_order(records: list[Record], dataset: ExampleDataset) -> list[Record]:
    """The records in the order of the rows, each with the ranks of its scores among all, the highest being 1."""
    by_source = {record['source']: record for record in records}
    names = [source.rows.row_name(index) for source in dataset.sources for index in range(len(source.rows))]
    ordered = [by_source[name] for name in names if name in by_source]
    order = np.argsort([-value for record in ordered for value in record['scores']], kind='stable')
    ranks = np.empty(len(order), dtype=int)
    ranks[order] = np.arange(1, len(order) + 1)
    remaining = iter(ranks.tolist())
    return [{**record, 'ranks': [next(remaining) for _ in record['scores']]} for record in ordered]


def write_scores(folder: Path, records: list[Record]) -> None:
    """Writes one line for each row, the summary, and the histogram.

    Raises DataError when no row could be scored, ModelError when a score is not finite.
    """
    if not records:
        raise DataError('no row could be scored; the reasons are in skipped_samples.jsonl.')
    values = np.array([value for record in records for value in record['scores']])
    unusable = next((record for record in records if not np.isfinite(record['scores']).all()), None)
    if unusable is not None:
        raise ModelError(
            f'the model gives {unusable["source"]} the scores {unusable["scores"]}; are its weights complete?'
        )
    atomic_write_text(
        folder / SCORES_FILE, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
    )
    pairs = np.array([record['scores'] for record in records if record['is_pair']]).reshape(-1, 2)
    atomic_write_json(folder / SUMMARY_FILE, {**summary(values), **(pair_summary(pairs) if len(pairs) else {})})
    _plot(folder / HISTOGRAM_FILE, values, pairs)


def summary(values: np.ndarray) -> dict[str, Any]:
    """Range, moments, quantiles and a histogram of scores `(R,)`."""
    counts, edges = np.histogram(values, BINS)
    return {
        'answers': len(values),
        'min': float(values.min()),
        'max': float(values.max()),
        'mean': float(values.mean()),
        'std': float(values.std()),
        'quantiles': {f'{share:g}': float(np.quantile(values, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)},
        'histogram': {'edges': edges.tolist(), 'counts': counts.tolist()},
    }


def pair_summary(pairs: np.ndarray) -> dict[str, float]:
    """How often the better answer, the first of each pair `(pairs, 2)`, scores higher, and how well it is calibrated.

    The calibration error is the mean distance, over ten bins weighted by their size, of the probability that the
    scores give to the higher one and the share in which it is the better one (Guo et al., 2017, arXiv:1706.04599).
    """
    margins = pairs[:, 0] - pairs[:, 1]
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = margins > 0
    bins = np.clip(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    gaps = [
        abs(confidence[bins == number].mean() - right[bins == number].mean()) * (bins == number).mean()
        for number in np.unique(bins)
    ]
    return {
        'pairs': len(pairs),
        'accuracy': float(right.mean()),
        'mean_margin': float(margins.mean()),
        'calibration_error': float(sum(gaps)),
    }


def _scored(
    cfgs: RunCfgs, pair: Pair, resolved: Resolved, spec: FamilySpec, dataset: ExampleDataset
) -> tuple[list[Record], list[Skipped]]:
    """The record of every row that can be used, and the others, on every rank."""
    collate = make_collator(cfgs, spec, pair, resolved.algorithm)
    engine = open_scorer(cfgs, collate, cfgs.model_cfgs.model_name_or_path)
    records: list[Record] = []
    skipped: list[Skipped] = []
    batch_size = cfgs.train_cfgs.per_device_eval_batch_size
    with closing(loader_in_order(dataset, dataset.sizes, batch_size, engine.policy.collate, cfgs)) as loader:
        for batch in loader.micro_batches(0):
            skipped += batch.skipped
            scores = engine.score(batch.to(engine.device)).values.tolist()
            owners = batch.examples_of_responses.tolist()
            for number in range(batch.stats['examples']):
                owned = [value for value, owner in zip(scores, owners, strict=True) if owner == number]
                is_pair = batch.metas[number]['is_pair']
                records.append({'source': batch.sources[number], 'scores': owned, 'is_pair': is_pair})
    gathered = all_gather_object((records, skipped))
    return [item for part, _ in gathered for item in part], [item for _, part in gathered for item in part]


def _plot(path: Path, values: np.ndarray, pairs: np.ndarray) -> None:
    # The object interface draws to the Agg canvas and leaves the caller's matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    sets = [(pairs[:, 0], 'better'), (pairs[:, 1], 'worse')] if len(pairs) else [(values, 'answers')]
    axes.hist([numbers for numbers, _ in sets], BINS, label=[label for _, label in sets])
    axes.set_xlabel('score')
    axes.set_ylabel('answers')
    axes.legend()
    FigureCanvasAgg(figure).print_png(path)
    sync_folder(path.parent)
