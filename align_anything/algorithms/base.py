"""What an algorithm is: hyper-parameters as fields, the roles it needs, and its loss terms."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from align_anything.configs.schema import AlgorithmCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.registry import Registry, nearest
from align_anything.core.types import Batch, Scored


class Algorithm(AlgorithmCfgs):
    """Base of all algorithms. The fields of a subclass appear in `train_cfgs` of its runs.

    Class attributes:
        name: the file name of its leaves and YAML files.
        data_hook: what a row must give: `supervised`, `preference`, `unpaired` (a response with a label),
            `answers` (one or two, to be scored) or `prompt_only`.
        meta_keys: what the row's meta must hold for it.
        roles: the models that score a batch; `trains` are those whose weights change.
        scores: what the policy gives: a log-probability for each of the `tokens`, or a number by a head of its own for
            each of the `responses`, or of the `units`.
        estimates_first: whether a step begins with `estimates`.
        with_entropy: whether `terms` read the entropies of the policy.
    """

    name: ClassVar[str]
    data_hook: ClassVar[str]
    meta_keys: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[tuple[str, ...]] = ('policy',)
    trains: ClassVar[tuple[str, ...]] = ('policy',)
    scores: ClassVar[str] = 'tokens'
    estimates_first: ClassVar[bool] = False
    with_entropy: ClassVar[bool] = False

    def coefficients(self) -> dict[str, float]:
        """The weight of each loss term in the objective, by the term's name."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each term, and each metric, is divided by, summed over the step: its own units in this batch."""
        raise NotImplementedError

    def terms(self, batch: Batch, scored: Mapping[str, Scored], estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """The sum of each term over this batch, given every role's scores. What has no coefficient is a metric."""
        raise NotImplementedError

    def estimates(self, batch: Batch, scored: Mapping[str, Scored]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count, over a batch with the responses of other rows, of what `terms` needs of the whole step."""
        raise NotImplementedError


ALGORITHMS: Registry[type[Algorithm]] = Registry('algorithm', SettingsError)


def find_algorithm(name: str) -> type[Algorithm]:
    """Returns the algorithm called `name`. Raises SettingsError, with the nearest name, when there is none."""
    known = known_algorithms()
    if name not in known:
        raise SettingsError(
            [f"there is no algorithm '{name}'.{nearest(name, list(known))} There are: {', '.join(known)}."]
        )
    return known[name]


def known_algorithms() -> dict[str, type[Algorithm]]:
    """Every algorithm that has a file in this package, by name."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f'{__package__}.{module.name}')
    return {name: ALGORITHMS.get(name) for name in ALGORITHMS}
