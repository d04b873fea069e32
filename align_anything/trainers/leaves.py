"""The runs there are: the pairs of the table, and for each the algorithms that have a module in its package.

The algorithms of installed packages have no modules here: the command runs them on every pair.
"""

from __future__ import annotations

import importlib
import pkgutil

from align_anything import trainers
from align_anything.algorithms.base import ALGORITHMS, Algorithm, find_algorithm, known_algorithms
from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest
from align_anything.trainers.pairs import PAIRS, Pair, find_pair


def runs() -> dict[str, list[str]]:
    """Returns the algorithms of every modality pair; those that cannot be used are left out."""
    known = known_algorithms()
    return {name: [algorithm for algorithm in _algorithms_of(name) if algorithm in known] for name in sorted(PAIRS)}


def find_run(pair: str, algorithm: str) -> tuple[Pair, type[Algorithm]]:
    """Returns the pair and the algorithm of a run.

    Raises SettingsError, with the nearest name, when there is none, and when its package is broken.
    """
    its_pair, algorithms = find_pair(pair), _algorithms_of(pair)
    if algorithm not in algorithms:
        hint = nearest(algorithm, algorithms)
        raise SettingsError([f"{pair} has no algorithm '{algorithm}'.{hint} It has: {', '.join(algorithms)}."])
    return its_pair, find_algorithm(algorithm)


def _algorithms_of(pair: str) -> list[str]:
    known = ALGORITHMS.names()
    package = importlib.import_module(f'{trainers.__name__}.{pair}')
    leaves = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name in known]
    return sorted({*leaves, *ALGORITHMS.plugins})
