"""Which tests `make test` runs and which are left to `make extended`; which come first, and which stay together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.harness.shares import SHARES

# Begun first, so that none is left to the end.
LONG = (
    'tests/scripts/test_demo',
    'tests/learning/',
    'tests/trainers/test_vllm',
    'tests/trainers/test_async',
    'tests/rollouts/test_vllm',
    'tests/trainers/test_resume',
    'tests/trainers/test_online',
    'tests/invariants/',
    'tests/scripts/test_shell_scripts',
)
FIRST_PARAMETER = 'that of the first parameter'
# Tests that share what a process takes seconds to make stay on one worker; all others spread over the workers. The
# first line that fits a test names its group.
TOGETHER = {
    # vLLM takes ten seconds to import; TRL imports much of it.
    **dict.fromkeys(
        (
            'tests/algorithms/test_trl',
            'tests/learning/test_online_vllm.py',
            'tests/losses/test_trl.py',
            'tests/rollouts/test_vllm',
            'tests/trainers/test_async.py',
            'tests/trainers/test_vllm.py',
        ),
        'vllm',
    ),
    # A painter that was taught first.
    'tests/learning/test_painted': 'painted',
    # A model that was taught first, by pair.
    'tests/learning/': FIRST_PARAMETER,
    # Rows, scores and gradients of plain transformers, by family.
    'tests/invariants/': FIRST_PARAMETER,
    # The run that nothing interrupted, or the one that left what all tests look at.
    **{
        f'tests/{name}.py': name.rpartition('_')[2]
        for name in (
            'contract/test_online_docs',
            'contract/test_preference_docs',
            'contract/test_recipes',
            'trainers/test_kept_features',
            'trainers/test_mixtures',
            'trainers/test_online_settings_read',
            'trainers/test_resume',
            'trainers/test_settings_read',
            'trainers/test_slices',
        )
    },
}

COUNTS = pytest.StashKey[dict[str, list[int]]]()
"""In the stash of pytest's config: how many tests of the first tier and how many extended ones each file has."""


def count_tiers(items: Iterable[pytest.Item]) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in items:
        counts[item.nodeid.partition('::')[0]][item.get_closest_marker('extended') is not None] += 1
    return dict(counts)


def group_of(name: str) -> str:
    """The group of the test of this name; a test that has none is one of its own."""
    group = next((group for files, group in TOGETHER.items() if name.startswith(files)), name)
    if group != FIRST_PARAMETER:
        return group
    parameters = name.partition('[')[2].rstrip(']')
    return parameters.split('-')[0] or name


class Together(LoadScopeScheduling):
    """Hands groups to workers as they become free, in the order of collection.

    In place of xdist's `loadgroup`, which writes groups into names in a way that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def first_tier(test: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """The parameters, of a test with one `parametrize`, that are not marked `extended`; none where it is itself.

    Raises ValueError for a test of which `make test` runs a share.
    """
    file = test.__module__.replace('.', '/') + '.py'
    if test.__name__ in SHARES.get(file, {}):
        raise ValueError(f'{test.__name__} is tested by a share of its cells (tests/harness/shares.py)')
    marks = {mark.name: mark for mark in test.pytestmark}
    if 'extended' in marks:
        return []
    found = []
    for given in marks['parametrize'].args[1]:
        values = given.values if isinstance(given, type(pytest.param())) else given
        extended = isinstance(given, type(pytest.param())) and any(mark.name == 'extended' for mark in given.marks)
        found += [] if extended else [values if isinstance(values, tuple) else (values,)]
    return found
