"""What an algorithm is: hyper-parameters as fields, the roles it needs, and its loss terms."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from align_anything.configs.schema import AlgorithmCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.registry import Registry, nearest
from align_anything.core.types import Batch, Need, Scored

TASKS = ('supervised', 'preference', 'unpaired', 'answers', 'prompt')
SCORES = ('tokens', 'responses', 'units')


class Algorithm(AlgorithmCfgs):
    """Base of all algorithms. The fields of a subclass appear in `train_cfgs` of its runs.

    Class attributes:
        name: the file name of its leaves and YAML files.
        task: what it reads of a row: `supervised`, `preference`, `unpaired` (a response with a label), `answers` (one
            or two, to be scored) or `prompt`.
        meta_keys: what the row's meta must hold for it.
        soft_labels: whether it reads `meta['soft_label']`, the probability that the first of two responses is better.
        trains: the models whose weights change, by role.
        scores: what the policy gives: a log-probability for each of the `tokens`, or a number by a head of its own for
            each of the `responses`, or of the `units`.
        estimates_first: whether a step begins with `estimates`.
        with_entropy: whether `terms` read the entropies of the policy.
        with_routing: whether they read where the tokens went among experts; engines do that for every algorithm.
        with_further: whether they read how likely the codes were that ride beside tokens; so does a term of SFT.
        told_by_kind: which of `terms` are told by kind of unit too, where a run has units of several.
        generates: whether the policy generates the responses that it learns from.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    meta_keys: ClassVar[tuple[str, ...]] = ()
    soft_labels: ClassVar[bool] = False
    scores: ClassVar[str] = 'tokens'
    estimates_first: ClassVar[bool] = False
    with_entropy: ClassVar[bool] = False
    with_routing: ClassVar[bool] = False
    with_further: ClassVar[bool] = False
    told_by_kind: ClassVar[tuple[str, ...]] = ()

    @property
    def refers(self) -> bool:
        """Whether it reads the scores of a reference, the per-unit values `reference` of a batch.

        Where it may, the class derives from `Reference`, and from `Referring` unless it generates.
        """
        return False

    @property
    def needs(self) -> Need:
        """The least that the score of a unit must be, see `core.types.Need`."""
        return 'score'

    def problems_with(self, meets: Need) -> list[str]:
        """What of its settings means nothing for policies whose score of a unit is `meets`, and what to do."""
        return []

    @property
    def companions(self) -> tuple[str, ...]:
        """The roles, `reference` and `old`, whose predictions its loss reads of policies that sample transitions.

        Beside their scores: of the first comes the exact divergence, which others have estimated; of the second how far
        the policy has moved, which others have not.
        """
        return ()

    @property
    def trains_transitions(self) -> bool:
        """Whether it learns from transitions that were sampled, where its policy has such, and not from scores."""
        return self.generates and self.needs != 'score'

    @property
    def contrasts(self) -> float | None:
        """How far the better and the worse policy lie from the one that sampled, where the loss reads their errors."""
        return None

    @property
    def scores_ranges(self) -> bool:
        """Whether codes of media are scored among those that could stand there, and not among all tokens."""
        return True

    @property
    def depth_coefficient(self) -> float | None:
        """The weight of the loss of codes that ride beside tokens; None where what writes them stays as it is."""
        return None

    @property
    def has_ratios(self) -> bool:
        """Whether the loss compares the policy, or a critic, with itself as it was at the rollout.

        What was scored then had no dropout, so the update has none either.
        """
        return False

    def coefficients(self) -> dict[str, float]:
        """The weight of each loss term in the objective, by the term's name."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each term, and each metric, is divided by, summed over the step: its own units in this batch."""
        raise NotImplementedError

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """The sum of each term over this batch, given the scores of the policy. What has no coefficient is a metric."""
        raise NotImplementedError

    def estimates(self, batch: Batch, scored: Scored) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count, over a batch with the responses of other rows, of what `terms` needs of the optimizer step."""
        raise NotImplementedError


def _fault(name: str, kind: type[Algorithm]) -> str:
    for key, allowed in {'name': (name,), 'task': TASKS, 'scores': SCORES}.items():
        # The base has no name and no task.
        found = getattr(kind, key, None)
        if found not in allowed:
            return f'its `{key}` is {found!r}, but should be {" or ".join(map(repr, allowed))}'
    return ''


ALGORITHMS: Registry[type[Algorithm]] = Registry(
    'algorithm',
    lambda text: SettingsError([text]),
    package=__package__,
    group='align_anything.algorithms',
    wanted='a class derived from Algorithm',
    is_one=lambda value: inspect.isclass(value) and issubclass(value, Algorithm),
    fault=_fault,
)


def find_algorithm(name: str) -> type[Algorithm]:
    """Returns the algorithm called `name`; no other of an installed package is imported.

    Raises SettingsError, with the nearest name, when there is none, and when its package is broken.
    """
    known = ALGORITHMS.names()
    if name not in known:
        raise SettingsError([f"there is no algorithm '{name}'.{nearest(name, known)} There are: {', '.join(known)}."])
    return ALGORITHMS.get(name)


def known_algorithms() -> dict[str, type[Algorithm]]:
    """Every algorithm that has a file in this package or comes with an installed one and can be used, by name."""
    return ALGORITHMS.usable()
