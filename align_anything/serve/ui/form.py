"""The settings of a run as a form: which fields it has, in which sections, and what a filled one says as words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.configs.annotations import describe_type, shape_of
from align_anything.configs.help import COMMON
from align_anything.configs.resolve import Offered, offered
from align_anything.configs.schema import build_run_schema, groups_of
from align_anything.core.lazy import LazyMapping
from align_anything.trainers.launch import defaults_of
from align_anything.trainers.pairs import Pair

CHOSEN = (
    *('model_cfgs.model_name_or_path', 'data_cfgs.train_datasets', 'data_cfgs.train_template'),
    'logger_cfgs.output_dir',
)
"""Settings that stand above the form."""

MARKS = {'<': '&lt;', '>': '&gt;', '*': '&#42;'}
Value = str | bool | Sequence[str] | None


@dataclass(frozen=True)
class Field:
    """A field of the form.

    Attributes:
        setting: what it sets.
        kind: `flag` to be ticked, `choice` of one of several, or `text` as the command line takes it.
        choices: of a choice.
    """

    setting: Offered
    kind: Literal['flag', 'choice', 'text']
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the command line has it."""
        return self.setting.key if self.setting.is_alone else self.setting.path

    @property
    def default(self) -> str:
        """What it is where nothing is given, as the command line would take it."""
        return written(self.setting.value)

    @property
    def info(self) -> str:
        """What it means, its type, and where its default comes from."""
        return f'{self.setting.description} ({describe_type(self.setting.annotation)}; {self.setting.origin})'


@dataclass(frozen=True)
class Section:
    """Fields that stand together under a title."""

    title: str
    meaning: str
    fields: Sequence[Field]


def fields_of(pair: Pair, algorithm: type[Algorithm]) -> list[Field]:
    """Returns a field for every setting that means something in such a run."""
    found = offered(
        *(pair.name, algorithm.name, algorithm, LazyMapping(known_algorithms), defaults_of(pair, algorithm)),
        reads=pair.reads,
        writes=pair.writes,
    )
    return [_field(setting) for setting in found]


def sections_of(algorithm: type[Algorithm], fields: Sequence[Field]) -> list[Section]:
    """Returns the fields in sections: those that most runs give, the algorithm's own, and the others by group."""
    rest = [field for field in fields if field.setting.path not in CHOSEN]
    common = sorted((f for f in rest if f.setting.key in COMMON), key=lambda field: COMMON.index(field.setting.key))
    own = [field for field in rest if field.setting.is_own and field not in common]
    groups = groups_of(build_run_schema(algorithm))
    others = [
        Section(group, _first(model), [f for f in rest if f.setting.group == group and f not in common + own])
        for group, model in groups.items()
    ]
    first = [
        Section('Common settings', 'What most runs give.', common),
        Section(f'Settings of {algorithm.name}', _first(algorithm), own),
    ]
    return [section for section in first + others if section.fields]


def words_of(fields: Sequence[Field], values: Mapping[str, Value]) -> list[str]:
    """Returns the words of the command line that fields with these values, by `group.key`, stand for.

    A text that is empty, and a flag or a choice that is as it would be anyway, says nothing.
    """
    words: list[str] = []
    for field in sorted(fields, key=lambda field: field.setting.path not in CHOSEN):
        words += _words(field, values.get(field.setting.path))
    return words


def as_markdown(text: str) -> str:
    """Returns a text for what reads Markdown and HTML: code stays, all else is shown as it is written."""
    parts = text.split('`')
    parts[::2] = [''.join(MARKS.get(letter, letter) for letter in part) for part in parts[::2]]
    return '`'.join(parts)


def written(value: Any) -> str:
    """Returns a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _first(kind: type) -> str:
    """The first paragraph of what a class says of itself."""
    return as_markdown(' '.join((kind.__doc__ or '').strip().partition('\n\n')[0].split()))


def _field(setting: Offered) -> Field:
    shape = shape_of(setting.annotation)
    plain = not (shape.text or shape.takes_list or shape.takes_mapping)
    if plain and shape.choices and not shape.numbers:
        return Field(setting, 'choice', (*shape.choices, *(('null',) if shape.null else ())))
    if plain and shape.numbers == (bool,) and not shape.null:
        return Field(setting, 'flag')
    return Field(setting, 'text')


def _words(field: Field, value: Value) -> list[str]:
    if field.kind == 'flag':
        return [] if value is None or value is field.setting.value else [f'--{field.name}', str(bool(value))]
    texts = [value] if isinstance(value, str) else list(value or ())
    texts = [text for text in texts if text.strip()]
    if not texts or (field.kind == 'choice' and texts == [field.default]):
        return []
    if len(texts) == 1 and texts[0].startswith(('--', '-h')):
        # Else it would be read as a key.
        return [f'--{field.name}={texts[0]}']
    return [f'--{field.name}', *texts]
