"""The environments that rows name, compared with the run before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from align_anything.configs.environment import ADDRESS, EnvironmentCfgs
from align_anything.configs.redaction import without_secrets
from align_anything.core.errors import DataError, SampleError, WorldError
from align_anything.datasets.dataset import Source
from align_anything.datasets.rows import InOrder
from align_anything.environments.base import environment_names, get_environment
from align_anything.environments.pool import NAMED

ROWS = 64
"""Rows of each source that are looked at."""


def check_row_environments(sources: Iterable[Source], settings: EnvironmentCfgs) -> None:
    """Raises DataError where one of the first rows names an environment that is unknown, or that the run ignores.

    In a run without an environment a column of that name may be about something else: it is taken for ours where it
    holds the name of an environment, a class in a file, or an address.
    """
    for source in sources:
        for row_name, row in islice(source.rows if source.streamed else InOrder(source.rows), ROWS):
            named = None if isinstance(row, SampleError) else row.get(NAMED)
            problem = _problem_of(named, settings.environment) if named else None
            if problem is not None:
                raise DataError(f"{row_name}: the row names the environment '{named}' in its column {NAMED}{problem}")


def _problem_of(named: Any, ours: str | None) -> str | None:
    if ours is None:
        if not _is_one(str(named)):
            return None
        return f', but the run has none, in which it would be ignored. Give one, such as --environment {named}.'
    if ours.startswith(ADDRESS):
        if str(named).rstrip('/') == ours.rstrip('/'):
            return None
        return f', but {without_secrets(ours)} has one environment for all.'
    try:
        get_environment(str(named))
    except WorldError as error:
        return f': {error}'
    return None


def _is_one(name: str) -> bool:
    return name in environment_names() or '.py:' in name or name.startswith(ADDRESS)
