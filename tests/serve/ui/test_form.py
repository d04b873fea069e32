"""The form has every setting of a run that means something, and what it says is what the command line would."""

from __future__ import annotations

import os
from typing import Any

import pytest

from align_anything.algorithms.base import Algorithm
from align_anything.configs.command_line import parse_command_line
from align_anything.configs.keys import KeyIndex
from align_anything.configs.schema import build_run_schema, groups_of
from align_anything.core.errors import SettingsError
from align_anything.serve.ui.form import CHOSEN, Field, as_markdown, fields_of, sections_of, words_of, written
from align_anything.trainers.launch import resolved_of
from align_anything.trainers.leaves import find_run
from align_anything.trainers.pairs import Pair

RUNS = [('text_to_text', 'sft'), ('text_image_to_text', 'dpo'), ('text_to_image', 'grpo'), ('any_to_any', 'ppo')]
NEEDED = ['--model_name_or_path', 'm', '--train_datasets', 'd.jsonl', '--train_template', 'T', '--output_dir', 'out']


def schema_of(algorithm: type[Algorithm]) -> dict[str, type]:
    return groups_of(build_run_schema(algorithm))


def of(pair: str, algorithm: str) -> tuple[Pair, type[Algorithm], dict[str, Field]]:
    found = find_run(pair, algorithm)
    return *found, {field.setting.path: field for field in fields_of(*found)}


@pytest.mark.parametrize(('pair', 'algorithm'), RUNS)
def test_every_setting_has_a_field_once_or_can_have_no_effect(pair: str, algorithm: str) -> None:
    its_pair, kind, fields = of(pair, algorithm)
    shown = [field.setting.path for section in sections_of(kind, [*fields.values()]) for field in section.fields]
    assert sorted([*shown, *CHOSEN]) == sorted(fields) and len({*shown}) == len(shown)
    every = {
        f'{group}.{key}': field for group, model in schema_of(kind).items() for key, field in model.model_fields.items()
    }
    assert set(fields) <= set(every) and len(fields) > len(every) / 3
    left_out = set()
    for path in every.keys() - fields.keys():
        field = every[path]
        other = _another(field.annotation, field.get_default(call_default_factory=True))
        if other is None:
            continue
        words = [f'--{path}', written(other)]
        with pytest.raises(SettingsError, match=path) as caught:
            resolved_of(its_pair, kind, [*NEEDED, *words], {})
        assert 'must be' not in str(caught.value) and 'expected' not in str(caught.value)
        left_out.add(path)
    assert pair != 'text_to_text' or 'diffusion_cfgs.resolution' in left_out


@pytest.mark.parametrize(('pair', 'algorithm'), RUNS)
def test_what_a_field_shows_is_what_the_command_line_reads(pair: str, algorithm: str) -> None:
    _, kind, fields = of(pair, algorithm)
    index = KeyIndex(build_run_schema(kind), f'{pair} {algorithm}', {})
    for path, field in fields.items():
        group, key = path.split('.')
        assert field.setting.description and field.setting.origin, path
        read = parse_command_line([f'--{field.name}', field.default], index).layer
        if field.default == '':
            continue
        assert not read.problems, (path, read.problems)
        (setting,) = read.settings
        assert (setting.location.group, setting.location.key) == (group, key)
        kinds = {bool: 'flag'}
        assert field.kind == kinds.get(type(field.setting.value), field.kind), path
        one = schema_of(kind)[group].model_validate({key: setting.value})
        assert getattr(one, key) == field.setting.value, path


def test_what_is_as_it_would_be_says_nothing() -> None:
    _, _, fields = of('text_image_to_text', 'sft')
    assert fields['train_cfgs.freeze_vision_tower'].setting.value is True, 'the pair says so'
    values: dict[str, Any] = {
        path: field.setting.value if field.kind == 'flag' else field.default if field.kind == 'choice' else ' '
        for path, field in fields.items()
    }
    assert words_of([*fields.values()], values) == [] == words_of([*fields.values()], {})


def test_values_are_words_of_the_command_line() -> None:
    its_pair, kind, fields = of('text_image_to_text', 'sft')
    values = {
        'model_cfgs.model_name_or_path': 'm',
        'data_cfgs.train_datasets': ['a.jsonl', 'b.jsonl'],
        'data_cfgs.train_template': 'T',
        'logger_cfgs.output_dir': 'out',
        'train_cfgs.learning_rate': '1e-4',
        'train_cfgs.max_steps': '7',
        'train_cfgs.freeze_vision_tower': False,
        'train_cfgs.lr_scheduler_type': 'linear',
        'train_cfgs.lr_groups': '{vision_tower: 1e-6}',
        'data_cfgs.train_template_kwargs': '{prompt: "a: b"}',
        'model_cfgs.chat_template': '--x',
        'lora_cfgs.use_lora': True,
    }
    words = words_of([*fields.values()], values)
    assert (
        '--chat_template=--x' in words
        and ['--train_datasets', 'a.jsonl', 'b.jsonl']
        == words[words.index('--train_datasets') : words.index('--train_datasets') + 3]
    )
    cfgs = resolved_of(its_pair, kind, words, os.environ).cfgs
    train = cfgs.train_cfgs
    assert (train.learning_rate, train.max_steps, train.freeze_vision_tower) == (1e-4, 7, False)
    assert train.lr_scheduler_type == 'linear' and train.lr_groups == {'vision_tower': 1e-6}
    assert cfgs.data_cfgs.train_template_kwargs == {'prompt': 'a: b'} and cfgs.lora_cfgs.use_lora
    assert cfgs.model_cfgs.chat_template == '--x'


def _another(annotation: Any, default: Any) -> Any:
    """A value that asks for something, of a type that is easy to tell; None where it is not."""
    if isinstance(default, bool):
        return not default
    text = str(annotation)
    if isinstance(default, int) and not isinstance(default, bool):
        return default + 1
    return 3 if default is None and 'int' in text and 'Literal' not in text else None


def test_descriptions_are_shown_as_they_are_written() -> None:
    assert as_markdown('renamed to <name>.old by `a <b> *` and a freeze_* key') == (
        'renamed to &lt;name&gt;.old by `a <b> *` and a freeze_&#42; key'
    )
    _, kind, fields = of('text_to_text', 'sft')
    assert all(section.meaning and '\n' not in section.meaning for section in sections_of(kind, [*fields.values()]))
