"""Recorded episodes of a dataset, done again in their environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from align_anything.core.errors import DataError, SampleError
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

    Raises DataError where no row is an episode, WorldError where the environment fails, or does nothing of what is
    recorded, or a recording says no seed.
    """
    made = make_environment(environment, checked_kwargs(environment, environment_kwargs))
    sources = load_sources(dataset, template, template_kwargs=template_kwargs, split=split)
    rows = ExampleDataset(sources, _no_task(), PAIR, frozenset({'image', 'video', ACTION}))
    left_out: list[Skipped] = []
    try:
        compared = compare(made, list(islice(_episodes(rows, left_out), episodes)))
    finally:
        close(environment, made)
    if not compared.episodes:
        raise DataError(f"not one row of '{dataset}' is an episode:\n{told_once(left_out)}")
    compared.left_out = told_once(left_out)
    return compared


def _no_task() -> SupervisedTask:
    """A task for rows that nobody encodes."""

    def encode(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    return SupervisedTask(encode)


def _episodes(rows: ExampleDataset, left_out: list[Skipped]) -> Iterator[Recorded]:
    """The rows that are episodes; why others are none goes to `left_out`."""
    for number in range(len(rows)):
        made = rows.recorded(number)
        if isinstance(made, Skipped):
            left_out.append(made)
            continue
        try:
            yield recorded_of(rows.name_of(number), made[0][0], made[1])
        except SampleError as error:
            left_out.append(Skipped(rows.name_of(number), str(error)))
