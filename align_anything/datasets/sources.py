"""From the name of a data source to its rows.

A source is a local file, a folder of files, a `save_to_disk` folder, a folder of images with a metadata file, or a
dataset of the Hugging Face hub. JSON is read by this package, because chat rows of mixed shapes don't fit one table
schema; the other formats go through `datasets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.registry import nearest
from align_anything.datasets.local_files import kind_of, local_files, metadata_files
from align_anything.datasets.rows import (
    FirstRows,
    InOrder,
    JoinedRows,
    JsonLinesStream,
    JsonList,
    MediaFolderRows,
    Rows,
    RowStream,
    TableRows,
    TableStream,
    joined,
    read_csv_text,
    read_json,
)

Split = Callable[[], Rows]
"""Opens the rows of one split; splits that aren't asked for are never read."""


def load_rows(
    source: str,
    *,
    name: str | None = None,
    split: str | None = None,
    size: int | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    optional_args: Mapping[str, Any] | Sequence[str] | None = None,
    cache_dir: str | None = None,
) -> Rows:
    """Opens a source for random access.

    Args:
        source: path, or name on the hub, or a builder of `datasets` ('json', 'csv', …) together with `data_files`.
        name: configuration of a hub dataset.
        split: split or slices of splits (`train[:10%]`, `train+test`); None takes `train`, or the only one.
        size: the first so many rows.
        data_files: files (patterns) inside the source, also `{split: files}`.
        optional_args: further arguments of `datasets.load_dataset`, a dict or a list of `key=value`.
        cache_dir: where `datasets` keeps what it downloads and converts.

    Raises:
        DataError: nothing there, nothing readable, no such split, no rows.
    """
    if size is not None and size < 1:
        raise DataError(f"size of '{source}' is {size}; give the number of rows to use, at least 1, or leave it out.")
    splits = _find_splits(source, name, data_files, _arguments(optional_args), cache_dir)
    rows = _take(source, splits, split)
    if size is not None and size < len(rows):
        rows = JoinedRows([(rows, 0, size)])
    if len(rows) == 0:
        of_split = f" split '{split}'" if split else ''
        raise DataError(f"'{source}'{of_split} has no rows. Check the file and the split.")
    return rows


def load_stream(
    source: str,
    *,
    name: str | None = None,
    split: str | None = None,
    size: int | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    optional_args: Mapping[str, Any] | Sequence[str] | None = None,
    cache_dir: str | None = None,
) -> RowStream:
    """Opens a source to be read in order, without loading or downloading it first. Arguments as in `load_rows`.

    Raises:
        DataError: as `load_rows`; also for slices of a split, which need random access.
    """
    if split is not None and not re.fullmatch(r'[\w.-]+', split):
        raise DataError(f"'{source}': split='{split}' can't be taken from a stream; use size, or no streaming.")
    arguments = _arguments(optional_args)
    files = None if _is_saved(Path(source).expanduser()) else local_files(source, name, data_files)
    stream: RowStream
    if _opens_at_once(source, files):
        opened = load_rows(
            source, name=name, split=split, data_files=data_files, optional_args=arguments, cache_dir=cache_dir
        )
        stream = InOrder(opened)
    elif files is not None and not arguments and kind_of(source, files) == 'jsonl':
        stream = JsonLinesStream(files[_pick(source, list(files), split)])
    else:
        loaded = _load_dataset(source, name, files, data_files, arguments, cache_dir, streaming=True)
        key = _pick(source, list(loaded), split)
        stream = TableStream(loaded[key], _label(source, name, key, files))
    return FirstRows(stream, size) if size is not None else stream


def source_folder(source: str) -> Path | None:
    """Returns the folder that relative media paths in the rows of a local source start from, None for the hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def _find_splits(
    source: str, name: str | None, data_files: Any, arguments: dict[str, Any], cache_dir: str | None
) -> dict[str, Split]:
    path = Path(source).expanduser()
    if _is_saved(path):
        if arguments or data_files or name:
            raise DataError(f"'{source}' is a save_to_disk folder: name, data_files and optional_args are not for it.")
        return _saved_splits(path)
    files = local_files(source, name, data_files)
    if files is not None:
        metadata = metadata_files(files)
        if metadata:
            return {key: partial(_join, _media_folder, found) for key, found in metadata.items()}
        if kind_of(source, files) in ('json', 'jsonl') and set(arguments) <= {'field'}:
            read = partial(read_json, field=arguments.get('field'))
            return {key: partial(_join, read, found) for key, found in files.items()}
    loaded = _load_dataset(source, name, files, data_files, arguments, cache_dir, streaming=False)
    return {str(key): partial(TableRows, loaded[key], _label(source, name, key, files)) for key in loaded}


def _join(read: Callable[[Path], Rows], files: list[Path]) -> Rows:
    return joined([read(file) for file in files])


def _media_folder(metadata: Path) -> Rows:
    rows: Rows
    if metadata.suffix == '.jsonl':
        rows = read_json(metadata)
    elif metadata.suffix == '.csv':
        rows = JsonList(metadata, read_csv_text(metadata))
    else:
        from datasets import Dataset

        rows = TableRows(Dataset.from_parquet(str(metadata)), str(metadata))
    return MediaFolderRows(rows, metadata.parent)


def _is_saved(path: Path) -> bool:
    return (path / 'dataset_dict.json').is_file() or (path / 'state.json').is_file()


def _opens_at_once(source: str, files: dict[str, list[Path]] | None) -> bool:
    """Whether random access costs a stream nothing: the rows are mapped from disk, or are one JSON list anyway."""
    if files is None:
        return _is_saved(Path(source).expanduser())
    return bool(metadata_files(files)) or kind_of(source, files) == 'json'


def _saved_splits(path: Path) -> dict[str, Split]:
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"'{path}' can't be read as a save_to_disk folder ({error}). Save it again.") from error
    found = {'train': saved} if isinstance(saved, Dataset) else dict(saved)
    several = len(found) > 1
    return {str(key): partial(TableRows, found[key], f'{path}[{key}]' if several else str(path)) for key in found}


def _load_dataset(
    source: str,
    name: str | None,
    files: dict[str, list[Path]] | None,
    data_files: Any,
    arguments: dict[str, Any],
    cache_dir: str | None,
    streaming: bool,
) -> Mapping[str, Any]:
    import datasets

    local = files is not None and kind_of(source, files) != 'images'
    builder = kind_of(source, files).removesuffix('l') if local else str(Path(source).expanduser())
    chosen = {key: [str(file) for file in found] for key, found in files.items()} if local else data_files
    try:
        return datasets.load_dataset(
            builder, name, data_files=chosen, cache_dir=cache_dir, streaming=streaming, **arguments
        )
    except Exception as error:  # the builders raise whatever their file readers do
        if local or Path(source).expanduser().exists():
            hint = 'Check the file, and data_cfgs optional_args.'
        else:
            hint = (
                'There is no file or folder of that name here. Check the spelling, the configuration name, the network '
                '(and HF_TOKEN for a private one), or download the dataset and give its folder.'
            )
        where = f"'{source}'" + (f" (name '{name}')" if name else '')
        raise DataError(f'dataset {where} could not be loaded: {type(error).__name__}: {error}. {hint}') from error


def _take(source: str, splits: dict[str, Split], split: str | None) -> Rows:
    if split is None or split in splits:
        return splits[_pick(source, list(splits), split)]()
    from datasets import ReadInstruction

    wanted = [re.sub(r'\[.*', '', piece).strip() for piece in split.split('+')]
    opened = {key: splits[_pick(source, list(splits), key)]() for key in wanted}
    try:
        slices = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in opened.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(f"'{source}': can't take split '{split}': {error}. Write for instance train[:10%].") from error
    return JoinedRows([(opened[part.splitname], part.from_, part.to) for part in slices])


def _pick(source: str, names: list[str], split: str | None) -> str:
    if split is None:
        if 'train' in names or len(names) == 1:
            return 'train' if 'train' in names else names[0]
        raise DataError(
            f"'{source}' has several splits ({', '.join(sorted(names))}) and no 'train'; choose one with split."
        )
    if split not in names:
        raise DataError(
            f"'{source}' has no split '{split}'.{nearest(split, names)} It has: {', '.join(sorted(names))}."
        )
    return split


def _label(source: str, name: str | None, split: str, files: dict[str, list[Path]] | None) -> str:
    if files is not None and len(files) == 1 and len(files[split]) == 1:
        return str(files[split][0])
    return f'{source}{f"/{name}" if name else ""}[{split}]'


def _arguments(optional_args: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Returns the arguments as a dict; the text form `key=value` has its values read as YAML."""
    if isinstance(optional_args, Mapping):
        return dict(optional_args)
    import yaml

    arguments = {}
    for item in optional_args or []:
        key, equals, value = item.partition('=')
        if not equals:
            raise DataError(f"optional_args entry '{item}' must be key=value, for instance delimiter=';'.")
        arguments[key.strip()] = yaml.safe_load(value)
    return arguments
