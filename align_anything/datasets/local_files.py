"""Which local files belong to a source, and to which split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from align_anything.core.errors import DataError
from align_anything.core.registry import nearest
from align_anything.core.types import MEDIA_KINDS, MediaKind

BUILDERS = {
    **{f'{suffix}{packed}': 'json' for suffix in ('.json', '.jsonl') for packed in ('', '.gz')},
    **{f'{suffix}{packed}': 'csv' for suffix in ('.csv', '.tsv') for packed in ('', '.gz')},
    '.parquet': 'parquet',
    '.arrow': 'arrow',
    '.pt': 'pt',
    '.tar': 'tar',
    '.txt': 'lines',
    '.hdf5': 'hdf5',
    '.h5': 'hdf5',
}
"""What reads a file, by its suffix; text may be compressed by gzip."""
MEDIA_SUFFIXES: dict[str, MediaKind] = {
    **dict.fromkeys(('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff'), 'image'),
    **dict.fromkeys(('.mp4', '.mkv', '.avi', '.mov', '.webm', '.m4v'), 'video'),
    **dict.fromkeys(('.wav', '.mp3', '.flac', '.ogg', '.opus', '.m4a', '.aac'), 'audio'),
}
METADATA = ('metadata.jsonl', 'metadata.csv', 'metadata.parquet')
NOT_ROWS = frozenset({'dataset_info.json', 'dataset_infos.json'})
READABLE = (
    f'{", ".join(BUILDERS)}, a save_to_disk folder, or a folder of media with metadata.jsonl, metadata.csv, or '
    'captions (x.txt beside x.png)'
)
NOT_ALONE = frozenset({'.pt', '.txt', '.hdf5', '.h5'})
"""Suffixes of files that beside others are no rows: weights, captions, lists of requirements, arrays."""
PROMPTS = ('prompts.txt', 'prompt.txt', 'captions.txt')
"""How a list of prompts is called in a folder."""

SPLIT_WORDS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('validation', 'valid', 'val', 'dev'), 'validation'),
    **dict.fromkeys(('test', 'testing', 'eval', 'evaluation'), 'test'),
}
DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def data_suffix(path: Path) -> str:
    """Returns the suffix that says what a file holds: `.csv`, or `.csv.gz` of one that is compressed."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() + suffix if suffix == '.gz' else suffix


def local_files(source: str, name: str | None, data_files: DataFiles | None) -> dict[str, list[Path]] | None:
    """Returns the files of each split; None when `datasets` has to find them (hub, remote files).

    Raises:
        DataError: the source can only be a path and isn't there, or holds nothing readable.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if data_files or name:
            raise DataError(f"'{source}' is a file: name and data_files don't apply to it; leave them out.")
        if data_suffix(path) not in BUILDERS:
            raise DataError(
                f"'{source}': can't read {data_suffix(path) or 'files without a suffix'}. Readable: {READABLE}."
            )
        return {'train': [path]}
    if not path.is_dir():
        if source in BUILDERS.values() and data_files:
            return files_matching(source, Path.cwd(), data_files)
        _refuse_missing(source, path)
        return None
    if name:
        return None
    return files_matching(source, path, data_files) if data_files else _whole_folder(source, path)


def kind_of(source: str, files: Mapping[str, list[Path]]) -> str:
    """Returns `jsonl`, `json`, `csv`, `parquet`, `arrow`, `pt`, `tar`, `lines`, `hdf5` or `media`.

    Files that are compressed are of the kind of their contents; `.tsv` is `csv`, and may not stand beside it. Raises
    DataError when the files are of several kinds.
    """
    suffixes = {data_suffix(file) for found in files.values() for file in found}
    if suffixes <= {'.jsonl', '.jsonl.gz'}:
        return 'jsonl'
    kinds = {BUILDERS.get(suffix, 'media') for suffix in suffixes}
    separators = {suffix.removesuffix('.gz') for suffix in suffixes} if kinds == {'csv'} else set()
    if len(kinds) > 1 or len(separators) > 1:
        raise DataError(
            f"'{source}' holds files of several kinds ({', '.join(sorted(suffixes))}); choose with data_files, "
            "for instance data_files='*.jsonl'."
        )
    return kinds.pop()


def only_images(files: Mapping[str, list[Path]]) -> bool:
    """Whether all files are images."""
    return all(MEDIA_SUFFIXES.get(file.suffix.lower()) == 'image' for found in files.values() for file in found)


def metadata_files(files: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Returns the files of each split that describe a folder of media."""
    found = {key: [file for file in paths if file.name in METADATA] for key, paths in files.items()}
    return {key: paths for key, paths in found.items() if paths}


def _whole_folder(source: str, folder: Path) -> dict[str, list[Path]]:
    found = _walk(folder)
    media = [file for file in found if file.suffix.lower() in MEDIA_SUFFIXES]
    captioned = {file.with_suffix('.json') for file in media}
    data = [
        file for file in found if data_suffix(file) in BUILDERS and file.name not in NOT_ROWS and file not in captioned
    ]
    rows = [file for file in data if data_suffix(file) not in NOT_ALONE] or lists_of_media(data)
    rows = rows or [file for file in data if BUILDERS[data_suffix(file)] == 'hdf5']
    if not rows and media:
        # Media beside a data file are what its rows point to, not rows. Their own names are no names of splits.
        return _by_split({file: _split_in_name(file.relative_to(folder).parent) for file in media})
    rows = rows or [file for file in data if data_suffix(file) == '.pt']
    rows = rows or [file for file in data if file.name.lower() in PROMPTS]
    if not rows:
        held = ', '.join(sorted({file.suffix or file.name for file in found})) or 'no file at all'
        raise DataError(f"'{source}' holds no data files, but {held}. Readable: {READABLE}.")
    return _by_split({file: _split_in_name(file.relative_to(folder)) for file in rows})


def _by_split(named: Mapping[Path, str | None]) -> dict[str, list[Path]]:
    """The files of each split; those that name none make one of their own where others do."""
    if not any(named.values()):
        return {'train': list(named)}
    splits: dict[str, list[Path]] = {}
    for file, split in named.items():
        splits.setdefault(split or file.name.removesuffix(data_suffix(file)), []).append(file)
    return splits


def lists_of_media(files: Sequence[Path]) -> list[Path]:
    """Returns the list of prompts among `files` and the list of media beside it, such as `videos.txt`; else none."""
    texts = {file.name.lower(): file for file in files if file.suffix == '.txt'}
    prompts = [texts[name] for name in PROMPTS if name in texts]
    media = [texts[name] for kind in MEDIA_KINDS for name in (f'{kind}s.txt', f'{kind}.txt') if name in texts]
    beside = [file for file in media if prompts and file.parent == prompts[0].parent]
    return [prompts[0], beside[0]] if len(prompts) == len(beside) == 1 else []


def _walk(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith('.')]
    return files


def _split_in_name(path: Path) -> str | None:
    """Returns the split that the file's own name gives, else the nearest folder's that gives one."""
    shard = re.fullmatch(r'(\w+)-\d{5}-of-\d{5}', path.name.removesuffix(data_suffix(path)))
    if shard:
        return SPLIT_WORDS.get(shard.group(1), shard.group(1))
    for part in (path.stem, *(folder.name for folder in path.parents)):
        for word in re.split(r'[^a-z]+', part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def files_matching(source: str, base: Path, data_files: DataFiles) -> dict[str, list[Path]] | None:
    """Returns the files of each split that the patterns name; None where some are not on this machine.

    Raises DataError for patterns that match nothing, and for files that nothing here reads.
    """
    from datasets.data_files import DataFilesDict, sanitize_patterns

    try:
        resolved = DataFilesDict.from_patterns(sanitize_patterns(data_files), base_path=str(base))
    except (OSError, ValueError) as error:
        raise DataError(f"'{source}' has no files matching data_files={data_files!r} ({error}).") from error
    files = {str(key): [Path(file) for file in found] for key, found in resolved.items()}
    # With wildcards, datasets returns nothing where it raises for a plain name.
    if not files or not all(files.values()):
        raise DataError(f"'{source}' has no files matching data_files={data_files!r}. Check the pattern.")
    for file in (file for found in files.values() for file in found):
        if not file.exists():
            return None
        if data_suffix(file) not in BUILDERS and file.suffix.lower() not in MEDIA_SUFFIXES:
            raise DataError(f"'{source}': can't read {file}, which data_files names. Readable: {READABLE}.")
    return files


def _refuse_missing(source: str, path: Path) -> None:
    """Raises when `source` can only be meant as a path; a hub name is `name` or `owner/name`."""
    if re.fullmatch(r'[\w.-]+(/[\w.-]+)?', source) and data_suffix(path) not in BUILDERS:
        return
    if path.parent.is_dir():
        hint = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    else:
        hint = f" The folder '{path.parent}' doesn't exist either."
    raise DataError(f"'{source}' doesn't exist.{hint} Give a file, a folder, or a dataset name of the hub.")
