"""From the name of a data source to its rows.

A source is a local file, a folder of files, a `save_to_disk` folder, a folder of images with a metadata file, one of
recorded episodes, or a dataset of the Hugging Face hub. JSON is read by this package, because chat rows of mixed shapes
don't fit one table schema; the other formats go through `datasets`. Values arrive as they are written: those of CSV and
TSV as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.registry import nearest
from align_anything.datasets.captioned_files import TarRows, captioned_media, line_rows
from align_anything.datasets.dataset_card import declared_configuration
from align_anything.datasets.lent_rows import LENT, Held, as_rows, as_stream
from align_anything.datasets.local_files import (
    data_suffix,
    files_matching,
    kind_of,
    local_files,
    metadata_files,
    only_images,
)
from align_anything.datasets.recorded_files import hdf5_rows, recorded_folder
from align_anything.datasets.rows import (
    FirstRows,
    InOrder,
    JoinedRows,
    JoinedStream,
    JsonLinesStream,
    MediaFolderRows,
    Rows,
    RowStream,
    TableRows,
    TableStream,
    joined,
    read_csv_text,
    read_json,
)
from align_anything.datasets.tensor_rows import read_tensors

CAPTIONS_WANTED = (
    'Put the caption of x.mp4 into x.txt beside it, or write metadata.jsonl with file_name and text of each file.'
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
    given = _arguments(optional_args)
    lent = _lent(source, name, data_files, given)
    if lent is not None:
        rows = as_stream(lent[_pick(source, list(lent), split)])
        return FirstRows(rows, size) if size is not None else rows
    at_once = _is_saved(_path(source)) or _recorded(source, name, data_files, given) is not None
    files, arguments = (None, given) if at_once else _local(source, name, data_files, given)
    stream: RowStream
    if at_once or _opens_at_once(source, files):
        opened = load_rows(
            source, name=name, split=split, data_files=data_files, optional_args=given, cache_dir=cache_dir
        )
        stream = InOrder(opened)
    elif files is not None and not arguments and kind_of(source, files) == 'jsonl':
        stream = JsonLinesStream(files[_pick(source, list(files), split)])
    elif _is_table(source, files):
        key = _pick(source, list(files), split)
        load = partial(_load_dataset, source, name, arguments=arguments, cache_dir=cache_dir, streaming=True)
        stream = JoinedStream(
            [
                TableStream(load(group)[key], _label(source, name, key, group[key]))
                for group in _by_folder(key, files[key])
            ]
        )
    else:
        loaded = _load_dataset(source, name, None, arguments, cache_dir, streaming=True, data_files=data_files)
        key = _pick(source, list(loaded), split)
        stream = TableStream(loaded[key], _label(source, name, key))
    return FirstRows(stream, size) if size is not None else stream


def split_names(
    source: str,
    *,
    name: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    optional_args: Mapping[str, Any] | Sequence[str] | None = None,
    cache_dir: str | None = None,
) -> list[str]:
    """Returns the names of the splits of a source. Arguments and errors as in `load_rows`."""
    return list(_find_splits(source, name, data_files, _arguments(optional_args), cache_dir))


def source_folder(source: str) -> Path | None:
    """Returns the folder that relative media paths in the rows of a local source start from, None for the hub."""
    path = _path(source)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


@cache
def _folder_of_place(place: str) -> str:
    path = Path(place)
    return str(path.parent) if path.is_file() else place if path.is_dir() else ''


def folder_of_row(name: str) -> str:
    """Returns the folder of the file that holds a row, by the name of the row; '' where it is in no local file."""
    return _folder_of_place(re.sub(r'(\[[^\[\]]*\])?:\d+$', '', name))


def _path(source: str) -> Path:
    return Path(source).expanduser()


def _local(
    source: str, name: str | None, data_files: Any, arguments: dict[str, Any]
) -> tuple[dict[str, list[Path]] | None, dict[str, Any]]:
    """Returns the files of each split and the arguments of their reader; None for what `datasets` has to find."""
    folder = _path(source)
    declared = declared_configuration(folder, name) if data_files is None and folder.is_dir() else None
    if declared is None:
        return local_files(source, name, data_files), arguments
    if declared.data_files is None:
        files = local_files(str(declared.folder), None, None)
    else:
        files = files_matching(source, declared.folder, declared.data_files)
    return files, {**declared.arguments, **arguments}


def _find_splits(
    source: str, name: str | None, data_files: Any, arguments: dict[str, Any], cache_dir: str | None
) -> dict[str, Split]:
    path = _path(source)
    lent = _lent(source, name, data_files, arguments)
    if lent is not None:
        return {key: partial(as_rows, source, rows) for key, rows in lent.items()}
    if _is_saved(path):
        if arguments or data_files or name:
            raise DataError(f"'{source}' is a save_to_disk folder: name, data_files and optional_args are not for it.")
        return _saved_splits(path)
    recorded = _recorded(source, name, data_files, arguments)
    if recorded is not None:
        return recorded
    files, arguments = _local(source, name, data_files, arguments)
    if files is not None:
        metadata = metadata_files(files)
        if metadata:
            return {key: partial(_join, _media_folder, found) for key, found in metadata.items()}
        if kind_of(source, files) in ('json', 'jsonl') and set(arguments) <= {'field'}:
            read = partial(read_json, field=arguments.get('field'))
            return {key: partial(_join, read, found) for key, found in files.items()}
        read = _FILES.get(kind_of(source, files))
        captioned = {key: captioned_media(found) for key, found in _media(source, files).items()}
        if arguments and (read is not None or any(captioned.values())):
            raise DataError(f"'{source}': optional_args are not for such files; leave out {', '.join(arguments)}.")
        if read is not None:
            return {key: partial(read, found) for key, found in files.items()}
        if any(captioned.values()):
            return {key: partial(_captioned, source, rows) for key, rows in captioned.items()}
        if captioned and not only_images(files):
            raise DataError(f"'{source}' holds media without captions. {CAPTIONS_WANTED}")
    if _is_table(source, files):
        load = partial(_load_dataset, source, name, arguments=arguments, cache_dir=cache_dir, streaming=False)
        return {key: partial(_tables, source, name, key, files, load) for key in files}
    loaded = _load_dataset(source, name, None, arguments, cache_dir, streaming=False, data_files=data_files)
    return {str(key): partial(TableRows, loaded[key], _label(source, name, key)) for key in loaded}


def _lent(source: str, name: str | None, data_files: Any, arguments: dict[str, Any]) -> Held | None:
    lent = LENT.get(source)
    if lent is not None and (arguments or data_files or name):
        raise DataError(f"'{source}' is in memory: name, data_files and optional_args are not for it.")
    return lent


def _recorded(source: str, name: str | None, data_files: Any, arguments: dict[str, Any]) -> Mapping[str, Split] | None:
    """The splits of a folder of recorded episodes, None for any other source."""
    found = recorded_folder(_path(source))
    if found is not None and (arguments or data_files or name):
        raise DataError(f"'{source}' is a folder of episodes: name, data_files and optional_args are not for it.")
    return found


def _is_table(source: str, files: Mapping[str, list[Path]] | None) -> bool:
    return files is not None and kind_of(source, files) != 'media'


def _media(source: str, files: Mapping[str, list[Path]]) -> Mapping[str, list[Path]]:
    """The files where they are media that stand for themselves, else none."""
    return files if kind_of(source, files) == 'media' else {}


def _captioned(source: str, rows: Rows | None) -> Rows:
    if rows is None:
        raise DataError(f"'{source}': no medium of this split has a caption. {CAPTIONS_WANTED}")
    return rows


def _tables(
    source: str,
    name: str | None,
    split: str,
    files: Mapping[str, list[Path]],
    load: Callable[[dict[str, list[Path]]], Mapping[str, Any]],
) -> Rows:
    """The rows of the files of a split, by folder, so that each row tells where its relative paths start."""
    groups = _by_folder(split, files[split])
    return joined([TableRows(load(group)[split], _label(source, name, split, group[split])) for group in groups])


def _by_folder(split: str, files: Sequence[Path]) -> list[dict[str, list[Path]]]:
    return [{split: list(found)} for _, found in groupby(files, key=lambda file: file.parent)]


_FILES: Mapping[str, Callable[[list[Path]], Rows]] = {
    'pt': lambda files: _join(read_tensors, files),
    'tar': lambda files: _join(TarRows, files),
    'lines': line_rows,
    'hdf5': hdf5_rows,
}
"""What reads the files of a split that are of a kind which nobody else reads."""


def _join(read: Callable[[Path], Rows], files: list[Path]) -> Rows:
    return joined([read(file) for file in files])


def _media_folder(metadata: Path) -> Rows:
    rows: Rows
    if metadata.suffix == '.jsonl':
        rows = read_json(metadata)
    elif metadata.suffix == '.csv':
        rows = read_csv_text(metadata)
    else:
        from datasets import Dataset

        rows = TableRows(Dataset.from_parquet(str(metadata)), str(metadata))
    return MediaFolderRows(rows, metadata.parent.absolute())


def _is_saved(path: Path) -> bool:
    return (path / 'dataset_dict.json').is_file() or (path / 'state.json').is_file()


def _opens_at_once(source: str, files: dict[str, list[Path]] | None) -> bool:
    """Whether random access costs a stream nothing: the rows are mapped from disk, or are one list anyway."""
    if files is None:
        return False
    if metadata_files(files) or kind_of(source, files) in ('json', *_FILES):
        return True
    return any(captioned_media(found) is not None for found in _media(source, files).values())


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
    files: Mapping[str, list[Path]] | None,
    arguments: dict[str, Any],
    cache_dir: str | None,
    streaming: bool,
    data_files: Any = None,
) -> Mapping[str, Any]:
    """Has `datasets` open local `files`, or else the source itself, all of it or its `data_files`."""
    import datasets

    builder = str(_path(source)) if files is None else kind_of(source, files).removesuffix('l')
    chosen = data_files if files is None else {key: list(map(str, found)) for key, found in files.items()}
    try:
        if builder == 'csv':
            arguments = _as_text(files, arguments)
        return datasets.load_dataset(
            builder, name, data_files=chosen, cache_dir=cache_dir, streaming=streaming, **arguments
        )
    except DataError:
        raise
    except Exception as error:  # the builders raise whatever their file readers do
        if files is not None or _path(source).exists():
            hint = 'Check the file, and data_cfgs optional_args.'
        else:
            hint = (
                'There is no file or folder of that name here. Check the spelling, the configuration name, the network '
                '(and HF_TOKEN for a private one), or download the dataset and give its folder.'
            )
        where = f"'{source}'" + (f" (name '{name}')" if name else '')
        raise DataError(f'dataset {where} could not be loaded: {type(error).__name__}: {error}. {hint}') from error


def _as_text(files: Mapping[str, list[Path]], arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments by which every value of the files is read as text, and an empty one as null.

    The reader would guess numbers, truth values and nulls, and write them otherwise than they stand there. Arguments
    that say how to read them go first.
    """
    import pandas
    from datasets import Features, Value
    from datasets.packaged_modules.csv.csv import CsvConfig

    first = next(file for found in files.values() for file in found)
    if data_suffix(first).startswith('.tsv'):
        arguments = {'sep': '\t', **arguments}
    if not {'na_values', 'keep_default_na', 'na_filter'} & arguments.keys():
        arguments = {**arguments, 'keep_default_na': False, 'na_values': ['']}
    if 'features' in arguments:
        return arguments
    options = {**CsvConfig(**arguments).pd_read_csv_kwargs, 'nrows': 0, 'chunksize': None}
    columns = {
        file: [*map(str, pandas.read_csv(file, **options).columns)] for found in files.values() for file in found
    }
    other = next((file for file, names in columns.items() if set(names) != set(columns[first])), None)
    if other is not None:
        # Columns that the first file lacks would be dropped.
        raise DataError(
            f'{first} has the columns {", ".join(columns[first])}, but {other} has {", ".join(columns[other])}. Give '
            'all files of a source the same columns, choose some with data_files, or make a source of each.'
        )
    return {**arguments, 'features': Features(dict.fromkeys(columns[first], Value('string')))}


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


def _label(
    source: str,
    name: str | None,
    split: str,
    group: Sequence[Path] = (),
) -> str:
    """What names the rows of some files of a split: the file, else their folder, else the source."""
    if len(group) == 1:
        return str(group[0])
    if group and group[0].parent != _path(source):
        return f'{group[0].parent}[{split}]'
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
