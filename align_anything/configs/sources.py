"""The datasets of a run, one record each, from keys that hold one value for all or one for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from align_anything.configs.schema import DataCfgs

Role = Literal['train', 'eval']
ROLES: tuple[Role, ...] = ('train', 'eval')

_PER_DATASET = ('template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')


def sources_of(data_cfgs: DataCfgs, role: Role) -> list[SourceCfgs]:
    """Returns one record for each dataset of `role`; an empty list when there is none.

    Works on settings that passed the checks, so every list has one entry for each dataset.
    """
    values = data_cfgs.model_dump()
    paths = _datasets(values, role)
    columns = {suffix: _spread(values[f'{role}_{suffix}'], suffix, values, role) for suffix in _PER_DATASET}
    weights = data_cfgs.train_weights if role == 'train' else None
    return [
        SourceCfgs(
            path=path,
            weight=None if weights is None else weights[number],
            **{suffix: column[number] for suffix, column in columns.items()},
        )
        for number, path in enumerate(paths)
    ]


def source_problems(data_cfgs: DataCfgs, role: Role) -> list[tuple[str, str]]:
    """Returns `(key, problem)` for keys of `role` that are missing, or whose lists do not fit the datasets."""
    values = data_cfgs.model_dump()
    paths = _datasets(values, role)
    datasets_key, template_key = f'{role}_datasets', f'{role}_template'
    problems = []
    if not paths and role == 'train':
        problems.append((datasets_key, 'is required: name the training data, for instance --train_datasets data.jsonl'))
    if values[template_key] in (None, []) and (paths or role == 'train'):
        problems.append((template_key, f'is required: name the template that reads the rows of {datasets_key}'))
    for suffix in _PER_DATASET if paths else ():
        column = _spread(values[f'{role}_{suffix}'], suffix, values, role)
        if len(column) != len(paths):
            problems.append(
                (
                    f'{role}_{suffix}',
                    f'has {len(column)} entries for {len(paths)} datasets in {datasets_key}; '
                    'give one value for all, or one for each',
                )
            )
    weights = values['train_weights'] if role == 'train' else None
    if weights is not None and paths and len(weights) != len(paths):
        problems.append(
            (
                'train_weights',
                f'has {len(weights)} entries for {len(paths)} datasets in {datasets_key}; give one for each',
            )
        )
    elif weights is not None and sum(weights) == 0:
        problems.append(('train_weights', 'are all zero; at least one must be positive'))
    return problems


def _datasets(values: dict[str, Any], role: Role) -> list[str]:
    given = values[f'{role}_datasets']
    return [given] if isinstance(given, str) else list(given or [])


def _spread(value: Any, suffix: str, values: dict[str, Any], role: Role) -> list[Any]:
    """Returns one entry for each dataset, or the list as it was given."""
    paths = _datasets(values, role)
    files_of_one = suffix == 'data_files' and isinstance(values[f'{role}_datasets'], str)
    if suffix in ('template_kwargs', 'optional_args') and value == []:
        value = {}
    if isinstance(value, list) and not files_of_one:
        return value * len(paths) if len(value) == 1 and suffix == 'template' else value
    return [value] * len(paths)


@dataclass(frozen=True)
class SourceCfgs:
    """One dataset: where it is, how it is loaded, which template reads it, and its share in the mixture."""

    path: str
    template: str
    template_kwargs: dict[str, Any]
    name: str | None
    split: str | None
    size: int | None
    data_files: str | list[str] | None
    optional_args: dict[str, Any]
    weight: float | None
