"""What metrics come to: the number of each, how sure it is, and how far it is from that of another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from align_anything.metrics.base import Measured, Metric, Traits
from align_anything.metrics.samples import Samples
from align_anything.metrics.statistics import LEVEL, bootstrap, paired_difference, ratio

Result = dict[str, Any]
REWARD, COST = 'reward', 'cost'
LOWER = ('turns', 'tool_errors', COST)
"""What is better of episodes when it is lower."""


class Resampling(NamedTuple):
    """How intervals are made: so many resamplings of prompts, by a seed."""

    samples: int
    seed: int


class Rows(NamedTuple):
    """What a metric says of each prompt: `sums` and `counts`, `(prompts,)` float64, and what tells prompts apart."""

    prompts: list[str]
    sums: np.ndarray
    counts: np.ndarray

    def of(self, prompts: Sequence[str]) -> Rows:
        """Those of these prompts alone."""
        places = {prompt: place for place, prompt in enumerate(self.prompts)}
        chosen = [places[prompt] for prompt in prompts]
        return Rows(list(prompts), self.sums[chosen], self.counts[chosen])


def rows_of(measured: Measured, samples: Samples) -> Rows:
    """Returns what a metric says of each prompt that it says something of, its responses added up."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for number, (sample, value) in enumerate(zip(samples, measured.values, strict=True)):
        if value is not None:
            sums[sample.prompt] = sums.get(sample.prompt, 0.0) + value
            counts[sample.prompt] = counts.get(sample.prompt, 0.0) + measured.count(number)
    return Rows(list(sums), np.array([*sums.values()], np.float64), np.array([*counts.values()], np.float64))


def result_of(metric: Metric, measured: Measured, samples: Samples, resampling: Resampling) -> Result:
    """Returns what is told of a metric: `value`, `interval` (None without one), `responses`, and the like.

    `by_dataset` has the values of each of several datasets. `value` is None where there is nothing to say.
    """
    told: Result = {'better': 'lower' if metric.traits.lower_is_better else 'higher'}
    details = {'details': dict(measured.details)} if measured.details else {}
    if measured.value is not None:
        return {**told, 'value': float(measured.value), 'interval': None, 'responses': len(samples), **details}
    known = [number for number, value in enumerate(measured.values) if value is not None]
    told |= {'value': measured.whole, 'interval': None, 'responses': len(known), 'abstained': len(samples) - len(known)}
    if known:
        rows = rows_of(measured, samples)
        told['interval'] = list(bootstrap(rows.sums, rows.counts, samples=resampling.samples, seed=resampling.seed))
    datasets: dict[str, list[int]] = {sample.dataset: [] for sample in samples}
    for number in known:
        datasets[samples[number].dataset].append(number)
    if len(datasets) > 1:
        told['by_dataset'] = {name: measured.over(own) for name, own in datasets.items()}
    return {**told, **details}


def comparison_of(
    metric: Metric, ours: tuple[Measured, Samples], theirs: tuple[Measured, Samples], resampling: Resampling
) -> Result:
    """Returns how a metric differs between two checkpoints: `other`, `difference`, its `interval`, and over how many
    `prompts` that both answered. Of a metric of the whole set there is no interval."""
    measured, others = ours[0], theirs[0]
    better = {'better': 'lower' if metric.traits.lower_is_better else 'higher'}
    if measured.value is not None and others.value is not None:
        difference = float(measured.value) - float(others.value)
        return {**better, 'other': float(others.value), 'difference': difference, 'interval': None}
    own, other = rows_of(*ours), rows_of(*theirs)
    known = {*other.prompts}
    both = [prompt for prompt in own.prompts if prompt in known]
    if not both:
        return {**better, 'other': None, 'difference': None, 'interval': None, 'prompts': 0}
    own, other = own.of(both), other.of(both)
    found = paired_difference(
        own.sums, own.counts, other.sums, other.counts, samples=resampling.samples, seed=resampling.seed
    )
    return {
        **better,
        'other': ratio(other.sums, other.counts),
        'difference': found.value,
        'interval': list(found.interval),
        'prompts': len(both),
    }


def is_better(comparison: Mapping[str, Any]) -> bool | None:
    """Whether the interval of a difference says better (True), worse (False), or neither (None)."""
    if comparison['interval'] is None:
        return None
    low, high = comparison['interval']
    if low <= 0 <= high:
        return None
    return (low > 0) == (comparison['better'] == 'higher')


def rewards_of(samples: Samples) -> dict[str, tuple[Metric, Measured]]:
    """Returns the scores that rewards gave to responses while they were generated, as metrics by name.

    With what is told of episodes, where responses are such.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample.response.get('scores', {})))
    values = {f'{REWARD}/{name}': [sample.response.get('scores', {}).get(name) for sample in samples] for name in names}
    episodes = [sample.response.get('episode', {}) for sample in samples]
    told = dict.fromkeys(name for own in episodes for name, value in own.items() if value is not None)
    values |= {name: [_of_episode(own, name) for own in episodes] for name in told}
    if len(names) > 1:
        values[REWARD] = [sample.response.get('score') for sample in samples]
    return {
        name: (Metric(name, Measured, Traits(lower_is_better=name in LOWER)), Measured(own))
        for name, own in values.items()
    }


def _of_episode(told: Mapping[str, float | None], name: str) -> float | None:
    """A number of an episode of which one like it was told; None where there is none.

    One that was cut before anybody told of its success had none, and one of whose costs nobody told cost nothing.
    """
    value = told.get(name)
    is_nothing = value is None and (name in told or (name == COST and bool(told)))
    return 0.0 if is_nothing else value


def per_response(measured: Measured, number: int) -> float | None:
    """Returns what a metric says of one response."""
    if measured.value is not None or measured.values[number] is None:
        return None
    return measured.values[number] / max(measured.count(number), 1e-300)


def as_tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the results as tables of text: a title, the heads, and the lines."""
    lines = [
        [name, _number(own['value']), _span(own['interval']), str(own.get('responses', '')), own['better'], _told(own)]
        for name, own in results['metrics'].items()
    ]
    heads = ['metric', 'value', f'{LEVEL:.0%} interval', 'responses', 'better', '']
    tables = [(results['model'], heads, lines)]
    if 'comparison' in results:
        compared = results['comparison']
        lines = [
            [name, _number(own['other']), _number(own['difference']), _span(own['interval']), VERDICTS[is_better(own)]]
            for name, own in compared['metrics'].items()
        ]
        tables.append((f'compared with {compared["with"]}', ['metric', 'other', 'difference', heads[2], ''], lines))
    names = [name for name, own in results['metrics'].items() if 'by_dataset' in own]
    if names:
        datasets = list(dict.fromkeys(dataset for name in names for dataset in results['metrics'][name]['by_dataset']))
        lines = [
            [dataset, *(_number(results['metrics'][name]['by_dataset'].get(dataset)) for name in names)]
            for dataset in datasets
        ]
        tables.append(('by dataset', ['dataset', *names], lines))
    return tables


VERDICTS = {True: 'better', False: 'worse', None: 'not told apart'}


def _told(result: Result) -> str:
    facts = {**({'abstained': result['abstained']} if result.get('abstained') else {}), **result.get('details', {})}
    return ', '.join(f'{name} {_number(value)}' for name, value in facts.items())


def _number(value: Any) -> str:
    return '–' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)


def _span(interval: Sequence[float] | None) -> str:
    return '–' if interval is None else f'{interval[0]:.4g} to {interval[1]:.4g}'
