"""Supervised rows beside generated responses: as many in each optimizer step as it has responses at most (ptx)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from align_anything.algorithms.online import Online
from align_anything.algorithms.sft import SFT
from align_anything.configs.online import PolicyRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import DataError
from align_anything.core.types import ACTION
from align_anything.datasets.action_datasets import by_dataset, datasets_of
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.loader import Loader
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.prompts import Prompts
from align_anything.datasets.sampler import BatchShape, IndexSampler
from align_anything.models.family import FamilySpec
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.data import Sources, load_sources_of, make_dataset, probe
from align_anything.trainers.runs.settings import data_ranks


def with_ptx_if_given(resolved: Resolved[PolicyRunCfgs, Online]) -> Resolved[PolicyRunCfgs, Online]:
    """The same run, without a supervised term where there are no data for it."""
    algorithm = resolved.algorithm
    if not algorithm.supervises or resolved.cfgs.data_cfgs.ptx_datasets:
        return resolved
    return replace(resolved, algorithm=algorithm.without_supervision())


def ptx_dataset(resolved: Resolved[PolicyRunCfgs, Online], pair: Pair, spec: FamilySpec) -> ExampleDataset | None:
    """The supervised rows of the run, if it has some. Raises DataError for those that cannot be used."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    if not algorithm.supervises:
        return None
    sources = load_sources_of(cfgs.data_cfgs, 'ptx', cfgs.logger_cfgs.cache_dir, False, pair.writes)
    probe(Sources(sources, []), pair, SFT(), cfgs.data_cfgs.train_on)
    if ACTION in pair.writes:
        names = datasets_of(sources, spec.space, cfgs.action_cfgs, teaches=False)
        sources = by_dataset(sources, names, spec.space)
    data = cfgs.data_cfgs
    dataset = make_dataset(sources, pair, spec, SFT(), data.train_on, drop_truncated=data.drop_truncated)
    if not len(dataset):
        raise DataError('data_cfgs.ptx_datasets hold no rows.')
    dataset.probe(final=True)
    return dataset


def ptx_loader(dataset: ExampleDataset, collate: Callable[..., Prompts], cfgs: RunCfgs) -> Loader:
    """The rows of each optimizer step on this rank; the loop cuts them into micro-batches."""
    train = cfgs.train_cfgs
    size = train.per_device_train_batch_size * train.gradient_accumulation_steps
    sampler = IndexSampler(Mixture(dataset.sizes, train.seed), BatchShape(size, 1, *data_ranks(cfgs)))
    return Loader(dataset, sampler, collate, cfgs.data_cfgs.num_workers)
