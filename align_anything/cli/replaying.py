"""Recorded episodes of a dataset, done again in their environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.types import ACTION, Skipped
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.skips import told_once
from align_anything.datasets.source_loading import load_sources
from align_anything.environments.base import checked_kwargs, close, make_environment
from align_anything.environments.replaying import Compared, Recorded, compare, recorded_of

PAIR = 'text_video_to_action'


def replay_dataset(
    environment: str,
    environment_kwargs: Mapping[str, Any],
    dataset: str,
    template: str,
    template_kwargs: Mapping[str, Any],
    split: str | None,
    episodes: int,
) -> Compared:
    """Does the first episodes of a dataset again, and says what came otherwise.

    Raises DataError where no row is an episode, WorldError where the environment fails or a recording says no seed.
    """
    made = make_environment(environment, checked_kwargs(environment, environment_kwargs))
    sources = load_sources(dataset, template, template_kwargs=template_kwargs, split=split)
    rows = ExampleDataset(sources, _no_task(), PAIR, frozenset({'image', 'video', ACTION}))
    try:
        return compare(made, list(islice(_episodes(rows, dataset), episodes)))
    finally:
        close(environment, made)


def _no_task() -> SupervisedTask:
    """A task for rows that nobody encodes."""

    def encode(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    return SupervisedTask(encode)


def _episodes(rows: ExampleDataset, dataset: str) -> Iterator[Recorded]:
    skipped, found = [], 0
    for number in range(len(rows)):
        made = rows.recorded(number)
        if isinstance(made, Skipped):
            skipped.append(made)
            continue
        found += 1
        yield recorded_of(rows.name_of(number), made[0][0], made[1])
    if not found:
        raise DataError(f"not one row of '{dataset}' is an episode:\n{told_once(skipped)}")
