"""What a metric is: a function of the samples of a run, by name, with options."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from align_anything.algorithms.evaluate import HARNESS
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, RewardError, SettingsError
from align_anything.core.registry import Registry, nearest
from align_anything.core.types import MediaKind
from align_anything.core.user_files import look_up
from align_anything.metrics import functions
from align_anything.metrics.samples import Samples
from align_anything.metrics.statistics import ratio
from align_anything.rewards.base import call_reward, check_options, check_values, get_reward, kinds_read, reward_names
from align_anything.trainers.pairs import Pair

AT_ONCE = 64
"""Samples whose media are decoded at once."""


@dataclass(frozen=True)
class Measured:
    """What a metric says of samples.

    Attributes:
        values: of each sample; None where there is nothing to say.
        counts: what each of them is divided by where the whole is no mean, such as the words of a reference; values
            are then sums, such as wrong words, and the whole is the sum of them over the sum of counts.
        value: of all samples together, where it is not made of `values` and `counts` at all.
        details: further numbers and facts of the whole.
    """

    values: Sequence[float | None] = ()
    counts: Sequence[float] | None = None
    value: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def count(self, number: int) -> float:
        """Returns what the value of a sample is divided by."""
        return 1.0 if self.counts is None else self.counts[number]

    def over(self, numbers: Iterable[int]) -> float | None:
        """Returns what is said of the samples of these numbers together; None where nothing is."""
        known = [number for number in numbers if self.values[number] is not None]
        if not known:
            return None
        return ratio(
            np.array([self.values[number] for number in known]), np.array([self.count(number) for number in known])
        )

    @property
    def whole(self) -> float | None:
        """What is said of all samples together; None where nothing is."""
        return self.over(range(len(self.values))) if self.value is None else float(self.value)


MetricFunction = Callable[..., Measured | list[float | None]]
"""`(samples: Samples, *, option=default, …)`; of one that compares `(samples, others: Samples, *, …)`."""


@dataclass(frozen=True)
class Traits:
    """What is known of a metric before it is asked.

    Attributes:
        lower_is_better: whether a lower number is the better one.
        compares: whether it compares the samples with those of another model, which it is given too.
        reads: the kinds of media that it judges, where it judges nothing else.
        is_pure: whether it asks no model and no service: it can be tried on a row before anything is generated.
    """

    lower_is_better: bool = False
    compares: bool = False
    reads: frozenset[MediaKind] = frozenset()
    is_pure: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric with its options.

    Attributes:
        name: what results call it.
        measure: gives a `Measured` of `Samples`, of two such where it compares.
        traits: what is known of it.
    """

    name: str
    measure: Callable[..., Measured]
    traits: Traits


METRICS: Registry[MetricFunction] = Registry(
    'metric',
    RewardError,
    package=functions.__name__,
    group='align_anything.metrics',
    wanted='a function',
    is_one=inspect.isfunction,
)
_TRAITS: dict[MetricFunction, Traits] = {}


def register_metric(
    name: str,
    *,
    lower_is_better: bool = False,
    compares: bool = False,
    reads: Collection[MediaKind] = (),
    is_pure: bool = False,
) -> Callable[[MetricFunction], MetricFunction]:
    """Decorator that files a metric under `name`; the others are its `Traits`.

    Raises `RewardError` when another one holds the name.
    """

    def decorate(function: MetricFunction) -> MetricFunction:
        METRICS.register(name)(function)
        _TRAITS[function] = Traits(lower_is_better, compares, frozenset(reads), is_pure)
        return function

    return decorate


def metric_names() -> list[str]:
    """Returns what `tasks` may name beside files and tasks of the harness: metrics, then rewards of other names."""
    own = METRICS.names()
    return [*own, *(name for name in reward_names() if name not in own)]


def make_metrics(
    tasks: Sequence[str], options: Mapping[str, Mapping[str, Any]], keys: tuple[str, str] = ('tasks', 'task_kwargs')
) -> list[Metric]:
    """Returns the metrics that `tasks` name, those of the harness left out.

    A name is that of a metric, of a reward function, or of a function in a file, `path/to/file.py:name`, that takes
    completions as rewards do. `keys` are the settings that say so.

    Raises:
        SettingsError: names that nothing has, options that do not fit, a name given twice; all of them at once.
    """
    problems, made = [], []
    setting, setting_of_options = (f'train_cfgs.{key}' for key in keys)
    for name in tasks:
        if name.startswith(HARNESS):
            continue
        try:
            made.append(_made(name, options.get(name, {})))
        except SettingsError as error:
            problems += [f'{setting}: {problem}' for problem in error.problems]
        except AlignAnythingError as error:
            problems.append(f'{setting}: {error}')
    problems += [f"{setting_of_options}: '{name}' is not among the tasks." for name in options if name not in tasks]
    names = [metric.name for metric in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f'{setting}: more than one goes by the name {name}.' for name in twice]
    if problems:
        raise SettingsError(problems)
    return made


def unwritten(metrics: Sequence[Metric], pair: Pair, key: str = 'tasks') -> list[str]:
    """Returns the problem with each metric of media that answers of the pair do not hold; `key` is the setting."""
    written = ', '.join(['text'] * pair.writes_text + sorted(pair.writes))
    return [
        f"train_cfgs.{key}: '{metric.name}' judges {' and '.join(sorted(metric.traits.reads))}, and answers of the "
        f'pair {pair.name} hold {written}.'
        for metric in metrics
        if metric.traits.reads and not metric.traits.reads & pair.writes
    ]


def _made(name: str, options: Mapping[str, Any]) -> Metric:
    short, is_file = name.rpartition(':')[2], ':' in name
    if not is_file and name not in (known := metric_names()):
        raise SettingsError([f"there is no metric '{name}'.{nearest(name, known)} There are: {', '.join(known)}."])
    function = look_up(name, METRICS) if is_file or name in METRICS else None
    if function in _TRAITS or (function is not None and not is_file):
        checked = check_options(name, function, options, 'metric')
        return Metric(short, partial(_asked, name, function, options=checked), _TRAITS.get(function, Traits()))
    function = get_reward(name)
    checked = check_options(name, function, options)
    return Metric(short, partial(_rewarded, name, function, options=checked), Traits(reads=kinds_read(name)))


def _asked(name: str, function: MetricFunction, *samples: Samples, options: Mapping[str, Any]) -> Measured:
    """What a metric says. Its values are one finite number, or None, for each sample."""
    try:
        found = function(*samples, **options)
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        raise RewardError(f"metric '{name}' failed: {type(error).__name__}: {error}.") from error
    found = Measured(found) if isinstance(found, list) else found
    if found.value is None:
        check_values(f"metric '{name}'", list(found.values), samples[0])
    return found


def _rewarded(name: str, function: Callable[..., Any], samples: Samples, options: Mapping[str, Any]) -> Measured:
    """What a reward function says, which is asked of some samples at a time."""
    values: list[float | None] = []
    for start in range(0, len(samples), AT_ONCE):
        some = [sample.completion() for sample in samples[start : start + AT_ONCE]]
        values += call_reward(name, function, some, options)
    return Measured(values)


def needs_extra(package: str, extra: str, what: str) -> None:
    """Raises SettingsError for a package that is not installed, naming the extra that brings it."""
    if importlib.util.find_spec(package) is None:
        raise SettingsError([f"{what} needs {package}: pip install 'align-anything[{extra}]'."])
