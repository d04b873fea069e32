"""What the curves of a run show: which metrics move, and which of them share a panel because they share a unit."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from align_anything.reporting.metrics import METRICS_FILE, TIMINGS_FILE, read_metrics

MAX_CURVES = 6
MAX_RATIO = 20.0
"""How much larger one metric of a panel may be than another: beyond it the smaller would be a flat line."""

Curve = list[tuple[int, float]]
Curves = Mapping[str, Mapping[str, Curve]]
"""Metric → `train` or `eval` → points (optimizer step, value)."""


class Kind(NamedTuple):
    """Metrics of one unit that are read together; `scale` is what values are divided by."""

    title: str
    unit: str
    names: re.Pattern[str]
    scale: float = 1.0


def _kind(title: str, unit: str, names: str, scale: float = 1.0) -> Kind:
    return Kind(title, unit, re.compile(names), scale)


# The most telling first.
KINDS = (
    _kind('rewards', 'reward', r'(\w+_)?reward(/.+)?|reward_margin'),
    _kind('loss', 'loss', r'loss'),
    _kind('accuracy', 'share', r'(\w+_)?accuracy'),
    _kind('divergence', 'nats', r'(\w+_)?kl(/.+)?'),
    _kind('entropy', 'nats', r'entropy'),
    _kind('length', 'tokens', r'response_length'),
    _kind('terms of the loss', 'loss', r'\w+_loss'),
    _kind('shares', 'share', r'truncated|repetition|uninformative|clipped\w*|abstained/.+|overconfidence'),
    _kind('deviation', 'reward', r'\w+_std'),
    _kind('gradient norm', 'norm', r'grad_norm'),
    _kind('learning rate', 'per step', r'learning_rate'),
    _kind('speed', 'tokens/s', r'tokens_per_second'),
    _kind('speed of media', 'samples/s', r'samples_per_second'),
    _kind('operations', 'TFLOP/s a device', r'tflops'),
    _kind('use of the device', 'share', r'mfu|recomputed'),
    _kind('time', 's', r'seconds/.+|seconds_per_step'),
    _kind('waste', 'share', r'padding|data_wait'),
    _kind('where time goes', 'share', r'share/.+'),
    _kind('balance', 'of the mean', r'busiest_rank'),
    _kind('memory', 'GiB', r'peak_memory', scale=2.0**30),
    _kind('tokens', 'tokens', r'(\w+_)?tokens'),
    _kind('rows', 'rows', r'samples|skipped|examples|filtered|truncated_answers'),
    _kind('responses', 'responses', r'responses|unread/.+'),
    _kind('steps', 'steps', r'staleness|\w+_steps'),
    _kind('load of experts', 'share', r'expert_load/.+'),
)
# How far the run is, which the axis of steps says.
NO_NEWS = {'epoch'}


@dataclass(frozen=True)
class Panel:
    """Metrics that share an axis."""

    title: str
    unit: str
    curves: Curves


def read_curves(folder: Path, files: Sequence[str] = (METRICS_FILE, TIMINGS_FILE)) -> dict[str, dict[str, Curve]]:
    """Returns the curves of a run, without values that are missing or not finite; a metric without any is absent."""
    curves: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for record in (record for file in files for record in read_metrics(folder / file)):
        for key, value in record.items():
            prefix, _, name = key.partition('/')
            if name and value is not None and math.isfinite(float(value)):
                curves[name][prefix].append((record['step'], float(value)))
    return {name: dict(own) for name, own in curves.items()}


def constants(curves: Curves) -> dict[str, float]:
    """Returns the metrics that have one value throughout, of at least two points, and the value."""
    values = {name: [value for curve in own.values() for _, value in curve] for name, own in curves.items()}
    return {name: own[0] for name, own in values.items() if len(own) > 1 and min(own) == max(own)}


def arrange(curves: Curves) -> list[Panel]:
    """Returns the panels of metrics that carry news, the most telling first; all metrics where none of them moves."""
    still = constants(curves)
    moving = {name: own for name, own in curves.items() if name not in still and name not in NO_NEWS}
    groups: dict[tuple[bool, int, str], dict[str, Mapping[str, Curve]]] = defaultdict(dict)
    for name, own in (moving or curves).items():
        groups[_group(name)][name] = own
    return [panel for (_, number, _), own in sorted(groups.items()) for panel in _panels(number, own)]


def _group(name: str) -> tuple[bool, int, str]:
    """Whether it is of one source or model of several, the number of its kind, and its name where it has no kind."""
    for own, candidate in ((False, name), (True, name.partition('/')[2])):
        for number, kind in enumerate(KINDS):
            if kind.names.fullmatch(candidate):
                return own, number, ''
    return '/' in name, len(KINDS), name.partition('/')[2] or name


def _panels(number: int, curves: Curves) -> Iterator[Panel]:
    """The panels of one group: metrics of about the same size share one."""
    kind = KINDS[number] if number < len(KINDS) else None
    sizes = {name: max(abs(value) for curve in own.values() for _, value in curve) for name, own in curves.items()}
    shares: list[list[str]] = []
    for name in sorted(curves, key=lambda name: -sizes[name]):
        if not shares or len(shares[-1]) == MAX_CURVES or sizes[shares[-1][0]] > MAX_RATIO * sizes[name]:
            shares.append([])
        shares[-1].append(name)
    for names in shares:
        scale = 1.0 if kind is None else kind.scale
        own = {name: {label: _scaled(curve, scale) for label, curve in curves[name].items()} for name in names}
        title = names[0] if kind is None or len(names) == 1 else kind.title
        yield Panel(title.replace('_', ' '), '' if kind is None else kind.unit, own)


def _scaled(curve: Curve, scale: float) -> Curve:
    return [(step, value / scale) for step, value in curve]
