"""The runs there are: a package for each modality pair, a module in it for each algorithm.

The algorithms of installed packages have no modules here: the command runs them on every pair.
"""

from __future__ import annotations

import importlib
import pkgutil

from align_anything import trainers
from align_anything.algorithms.base import ALGORITHMS, Algorithm, known_algorithms
from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest
from align_anything.trainers.pairs import Pair


def runs() -> dict[str, tuple[Pair, list[str]]]:
    """Returns every modality pair with its algorithms, by the name of the pair."""
    known = known_algorithms()
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(trainers.__path__) if '_to_' in module.name):
        package = importlib.import_module(f'{trainers.__name__}.{name}')
        leaves = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name in known]
        found[name] = (package.PAIR, sorted({*leaves, *ALGORITHMS.plugins}))
    return found


def find_run(pair: str, algorithm: str) -> tuple[Pair, type[Algorithm]]:
    """Returns the pair and the algorithm of a run. Raises SettingsError, with the nearest name, when there is none."""
    known = runs()
    if pair not in known:
        hint = nearest(pair, list(known))
        raise SettingsError([f"there is no modality pair '{pair}'.{hint} There are: {', '.join(known)}."])
    its_pair, algorithms = known[pair]
    if algorithm not in algorithms:
        hint = nearest(algorithm, algorithms)
        raise SettingsError([f"{pair} has no algorithm '{algorithm}'.{hint} It has: {', '.join(algorithms)}."])
    return its_pair, known_algorithms()[algorithm]
