"""What `align-anything sweep` is asked for: one run, and which of its settings are searched."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from align_anything.configs.base import Cfgs
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest

Settings = dict[str, Any]


class Span(Cfgs):
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = Field(False, description='Whether as many are tried between 1 and 10 as between 10 and 100.')

    @model_validator(mode='after')
    def _in_order(self) -> Span:
        if self.low >= self.high:
            raise ValueError('low must be below high')
        if self.log and self.low <= 0:
            raise ValueError('log needs a low above 0')
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are whole ones."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SweepCfgs(Cfgs):
    """A sweep."""

    pair: str = Field(description='Modality pair of the run.')
    algorithm: str = Field(description='Its algorithm.')
    metric: str = Field(description='What is compared: a name in metrics.jsonl, such as eval/loss; its last value.')
    direction: Literal['minimize', 'maximize'] = Field(description='Which way the metric is better.')
    output_dir: str = Field(description='Folder for the runs and the table.')
    settings: dict[str, Any] = Field({}, description='Settings that all trials share, as in a file for --config.')
    search: dict[str, list[Any] | Span] = Field(
        min_length=1, description='Settings to search: a list of values, or {low, high, log} for optuna.'
    )
    method: Literal['grid', 'optuna'] = Field('grid', description='All combinations, or what optuna suggests.')
    trials: PositiveInt | None = Field(None, description='How many; null is all of a grid. optuna needs it.')
    jobs: PositiveInt = Field(1, description='Trials that run side by side.')
    seed: int = Field(0, description='Of what optuna suggests.')

    @model_validator(mode='after')
    def _of_method(self) -> SweepCfgs:
        spans = [name for name, values in self.search.items() if isinstance(values, Span)]
        if self.method == 'grid' and spans:
            raise ValueError(f'search.{spans[0]} is a range, which method: grid has no end of; list values, or optuna')
        if self.method == 'optuna' and self.trials is None:
            raise ValueError('method: optuna goes on for ever without trials; say how many')
        empty = [name for name, values in self.search.items() if values == []]
        if empty:
            raise ValueError(f'search.{empty[0]} lists no value')
        for name, values in self.search.items():
            twice = [value for value in values if values.count(value) > 1] if isinstance(values, list) else []
            if twice:
                raise ValueError(f'search.{name} lists {twice[0]} twice')
        return self

    def grid(self) -> list[Settings]:
        """Returns the searched settings of each trial of a grid, the last setting changing fastest."""
        lists = (values if isinstance(values, list) else [values.low, values.high] for values in self.search.values())
        every = [dict(zip(self.search, values, strict=True)) for values in itertools.product(*lists)]
        return every[: self.trials]

    def corners(self) -> list[Settings]:
        """Returns settings in which each searched value, and each end of a range, is met once."""
        lists = {
            name: values if isinstance(values, list) else [values.low, values.high]
            for name, values in self.search.items()
        }
        most = max(map(len, lists.values()))
        return [{name: values[number % len(values)] for name, values in lists.items()} for number in range(most)]


def read_sweep(path: Path) -> SweepCfgs:
    """Returns the sweep that a YAML file asks for. Raises SettingsError with all that is wrong in it."""
    try:
        values = parse_yaml(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise SettingsError([f'{path}: {error}.']) from error
    if not isinstance(values, dict):
        raise SettingsError([f'{path} must hold a mapping with {", ".join(SweepCfgs.model_fields)}.'])
    try:
        return SweepCfgs(**values)
    except ValidationError as error:
        told = [f'{path}: {_told(problem)}' for problem in error.errors()]
        raise SettingsError(list(dict.fromkeys(told))) from error


def _told(problem: Any) -> str:
    first, *rest = problem['loc'] or ('',)
    if problem['type'] == 'extra_forbidden' and not rest:
        return f"there is no key '{first}'.{nearest(str(first), list(SweepCfgs.model_fields))}"
    # Behind the name of a searched setting stands which of the two kinds was tried.
    where = '.'.join(map(str, [first, *rest[:1]])) if first == 'search' else '.'.join(map(str, problem['loc']))
    if first == 'search' and problem['type'] in ('list_type', 'model_type'):
        return f'{where}: give a list of values, or a range {{low, high, log}}.'
    said = problem['msg'].removeprefix('Value error, ')
    return f'{where}: {said}.' if where else f'{said}.'
