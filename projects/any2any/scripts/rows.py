"""Which template reads the data of a file of Any2Any Trainer, and which of them are held out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mapping import Run

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import MEDIA_KINDS
from align_anything.datasets.sources import load_stream, split_names

CONVERSATIONS = 'conversations'
HELD_OUT = ('validation', 'val', 'test', 'test_sft', 'eval')
TRAINING = ('train', 'train_sft', 'training')
Template = tuple[str, dict[str, Any]]


def add_data(run: Run) -> None:
    """Adds the settings of the data: their templates, from the first row of each, and what to evaluate on.

    Raises DataError for data that cannot be opened, or whose columns no template is known for.
    """
    file = run.file
    datasets = [file.dataset] if isinstance(file.dataset, str) else file.dataset
    several = len(datasets) > 1
    if 'data_cfgs.train_datasets' in run.settings:
        raise DataError('dataset and train_datasets are two names of one thing. Leave one of them out.')
    run.put('data_cfgs.train_datasets', datasets if several else datasets[0], 'dataset')
    held_out = _held_out(run, datasets)
    if 'data_cfgs.train_template' not in run.settings:
        fields = file.conversation_field, file.image_field
        found = [
            template_of_source(source, *fields, **_where(run, at, several), split=_split(run, at, several))
            for at, source in enumerate(datasets)
        ]
        for source, (name, options) in zip(datasets, found, strict=True):
            run.notes.append(f'{source} is read by the template {name}{f" with {options}" if options else ""}.')
        run.default('data_cfgs.train_template', [name for name, _ in found] if several else found[0][0])
        run.default('data_cfgs.train_template_kwargs', [kwargs for _, kwargs in found] if several else found[0][1])
    elif {'conversation_field', 'image_field'} & file.model_fields_set:
        raise DataError(
            'conversation_field and image_field are options of the templates that are found by looking at the data: '
            'beside train_template give train_template_kwargs.'
        )
    if held_out:
        run.default('data_cfgs.eval_datasets', run.settings['data_cfgs.train_datasets'])
        run.default('data_cfgs.eval_split', held_out if several else held_out[0])
        for key in ('name', 'template', 'template_kwargs'):
            if f'data_cfgs.train_{key}' in run.settings:
                run.default(f'data_cfgs.eval_{key}', run.settings[f'data_cfgs.train_{key}'])
    elif 'data_cfgs.eval_datasets' not in run.settings:
        _evaluate_nothing(run)


def template_of(row: Mapping[str, Any], conversation_field: str | None, image_field: str | None) -> Template:
    """Returns the template that reads rows such as this one, and its options.

    Raises DataError when the columns are those of none.
    """
    column = conversation_field or CONVERSATIONS
    if isinstance(row.get('input'), Mapping) and isinstance(row.get('output'), Mapping):
        return 'Any2Any_IO', {}
    if isinstance(row.get(column), Sequence) and not isinstance(row[column], str) and row[column]:
        return _conversation(row, column, image_field)
    if conversation_field is None and row.get('messages'):
        return 'Messages', {}
    if {'instruction', 'output'} <= row.keys():
        return 'Alpaca', {}
    raise DataError(
        f'no template is known for rows with the columns {", ".join(row)}: a conversation would be in {column}. Name '
        'its column with conversation_field, or give the template: train_template in a configuration, --template of '
        'generate.py (align-anything templates lists them).'
    )


def _conversation(row: Mapping[str, Any], column: str, image_field: str | None) -> Template:
    first = row[column][0]
    if not isinstance(first, Mapping):
        raise DataError(f'the first turn of {column} is a {type(first).__name__}, and should be a record.')
    images = {'images': image_field} if image_field is not None and image_field in row else {}
    if 'from' in first:
        return 'ShareGPT', {'conversations': column, **images}
    beside = [kind for kind in MEDIA_KINDS if kind in row or f'{kind}s' in row]
    if images or beside:
        return 'ShareGPT', {'conversations': column, 'role_key': 'role', 'content_key': 'content', **images}
    return 'Any2Any_Conv', {'conversation_field': column}


def template_of_source(
    source: str, conversation_field: str | None = None, image_field: str | None = None, **where: Any
) -> Template:
    """Returns the template of a source by its first row; `where` are arguments of `load_stream`. Raises DataError."""
    ((_, row),) = load_stream(source, size=1, **where)
    try:
        if isinstance(row, SampleError):
            raise DataError(str(row))
        return template_of(row, conversation_field, image_field)
    except DataError as error:
        raise DataError(f'{source}: {error}') from error


def _where(run: Run, at: int, several: bool) -> dict[str, Any]:
    """Where the rows of the dataset of that number are, as arguments of `load_stream`."""
    values = {key: run.settings.get(f'data_cfgs.train_{key}') for key in ('name', 'data_files')}
    own = {key: value[at] if several and isinstance(value, list) else value for key, value in values.items()}
    return {**own, 'cache_dir': run.settings.get('logger_cfgs.cache_dir')}


def _split(run: Run, at: int, several: bool) -> str | None:
    """The split that the dataset of that number is trained on, slices aside; None for the usual one."""
    given = run.settings.get('data_cfgs.train_split')
    given = given[at] if several and isinstance(given, list) else given
    return (re.match(r'[\w.-]*', given)[0] or None) if given else None


def _held_out(run: Run, datasets: list[str]) -> list[str]:
    """Adds which split is trained on, and returns which is evaluated, of each dataset; nothing for none.

    As Any2Any Trainer does: a split that is there for it, and where the file asks for it and there is none, the last
    tenth. Where `train_split` or streaming say what to train on, only `eval_datasets` say more.
    """
    wanted, several = run.file.eval_during_training, len(datasets) > 1
    if 'data_cfgs.eval_datasets' in run.settings:
        if wanted is not None:
            raise DataError('eval_during_training: eval_datasets say what to evaluate on; leave it out.')
        return []
    if 'data_cfgs.train_split' in run.settings or run.settings.get('data_cfgs.streaming', False):
        if wanted:
            raise DataError('eval_during_training: give eval_datasets too, beside train_split or streaming.')
        return []
    splits = [split_names(source, **_where(run, at, several)) for at, source in enumerate(datasets)]
    training = [next((name for name in TRAINING if name in names), names[0]) for names in splits]
    held_out = [next((name for name in HELD_OUT if name in names), None) for names in splits]
    why = 'are held out by the data'
    if wanted and None in held_out:
        held_out, why = [f'{name}[90%:]' for name in training], 'are the last tenth'
        training = [f'{name}[:90%]' for name in training]
    if training != ['train'] * len(datasets):
        run.default('data_cfgs.train_split', training if several else training[0])
    if wanted is False or None in held_out:
        return []
    run.notes.append(f'evaluated on {", ".join(dict.fromkeys(held_out))}: these rows {why}.')
    return held_out


def _evaluate_nothing(run: Run) -> None:
    unused = ('per_device_eval_batch_size', 'eval_strategy', 'eval_interval', 'save_best')
    for path in (f'train_cfgs.{key}' for key in unused if f'train_cfgs.{key}' in run.settings):
        run.notes.append(
            f'{run.origins[path]} is left out: nothing is evaluated. Give eval_datasets, or eval_during_training: true.'
        )
        del run.settings[path], run.origins[path]
