"""How the episodes of a run are cut into rows."""

from __future__ import annotations

from itertools import accumulate

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import DataError
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION
from align_anything.datasets.budget import BudgetSampler, RowCosts
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.filling import Filling
from align_anything.datasets.measuring import measure_windows
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, IndexSampler, Sampler
from align_anything.datasets.windowing import AllWindows
from align_anything.datasets.windows import Windows
from align_anything.models.family import FamilySpec
from align_anything.trainers.pairs import Pair

logger = get_logger(__name__)


def windows_of(cfgs: RunCfgs, pair: Pair, algorithm: Algorithm, spec: FamilySpec) -> Windows | None:
    """How the episodes of a run are cut, into the chunks that the model says in one turn; None where they are not."""
    if algorithm.task != 'supervised' or ACTION not in pair.writes:
        return None
    data, train = cfgs.data_cfgs, cfgs.train_cfgs
    return Windows(
        data.sliding_window,
        1 if spec.space is None else spec.space.chunk,
        data.windows,
        (data.init_prob_sample_last_steps, data.final_prob_sample_last_steps),
        train.epochs,
        data.reduce_action_redundancy,
        train.seed,
    )


def sampler_of_all_windows(
    dataset: ExampleDataset,
    windows: Windows,
    costs: RowCosts | None,
    filling: Filling | None,
    shape: BatchShape,
    cfgs: RunCfgs,
) -> Sampler:
    """Returns the sampler in whose epochs each window of each episode is a row. Every rank calls it.

    Raises DataError for streams, whose windows nobody can count.
    """
    data = cfgs.data_cfgs
    if data.streaming:
        raise DataError('data_cfgs.windows: all needs rows that can be counted; set streaming: False, or random.')
    counts = measure_windows(dataset, windows, data.num_workers)
    ends = list(accumulate(dataset.sizes))
    sizes = [sum(counts[end - size : end]) for end, size in zip(ends, dataset.sizes, strict=True)]
    in_turn = data.train_mixing == 'round_robin'
    mixture = Mixture(sizes, cfgs.train_cfgs.seed, weights=data.train_weights, in_turn=in_turn)
    logger.info('%d episodes have %d windows.', len(counts), sum(counts))
    if costs is None:
        return AllWindows(IndexSampler(mixture, shape), windows, counts)
    each = [cost for cost, count in zip(costs, counts, strict=True) for _ in range(count)]
    return AllWindows(BudgetSampler(mixture, each, filling), windows, counts)
