"""From the data settings of a run to the sources of its dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.logging import get_logger
from align_anything.core.types import MediaKind
from align_anything.datasets.dataset import Source
from align_anything.datasets.formatters.base import make_formatter
from align_anything.datasets.local_files import DataFiles
from align_anything.datasets.media import MediaCache
from align_anything.datasets.recognition import recognised
from align_anything.datasets.sources import load_rows, load_stream, source_folder

logger = get_logger(__name__)


def load_sources(
    datasets: str | Sequence[str],
    template: str | Sequence[str] | None,
    *,
    template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    name: str | Sequence[str | None] | None = None,
    split: str | Sequence[str | None] | None = None,
    size: int | Sequence[int | None] | None = None,
    data_files: DataFiles | Sequence[DataFiles | None] | None = None,
    optional_args: Mapping[str, Any] | Sequence[str] | Sequence[Mapping[str, Any]] | None = None,
    image_folder: str | None = None,
    video_folder: str | None = None,
    audio_folder: str | None = None,
    media_options: Mapping[str, Mapping[str, Any]] | None = None,
    cache_bytes: int = 0,
    streaming: bool = False,
    cache_dir: str | None = None,
    writes: Set[MediaKind] = frozenset(),
) -> list[Source]:
    """Opens each dataset with its template.

    With a list of datasets, every other argument is one value for all or a list with one entry for each; with a single
    name, a list of `data_files` means several files of it. A list of `key=value` texts is one value of
    `optional_args`. Templates are made first: a wrong name is found before anything is downloaded.

    Args:
        template: what reads the rows; None for what their columns tell, see `recognised`.
        image_folder: where relative paths of images start; None for the folder of the row's file. Likewise for video
            and audio. Folders that a template was given go first.
        media_options: what decoding each kind should heed, such as `{'video': {'num_frames': 8}}`.
        cache_bytes: decoded media that each worker keeps for rows to come.
        writes: kinds of media that answers hold, for rows without a template.

    Raises:
        DataError: a list of the wrong length, an unknown template, a source that can't be opened, or one whose columns
            are not known where no template is given.
    """
    several = not isinstance(datasets, str)
    sources = list(datasets) if several else [datasets]
    if not sources:
        raise DataError('the list of datasets is empty; name at least one.')

    def each(key: str, value: Any, is_list: bool) -> list[Any]:
        if not is_list:
            return [value] * len(sources)
        if len(value) != len(sources):
            raise DataError(
                f'{key} has {len(value)} entries for {len(sources)} datasets; give one for each, or one for all.'
            )
        return list(value)

    templates = each('template', template, _is_list(template))
    options = each('template_kwargs', template_kwargs, _is_list(template_kwargs))
    formatters = [
        None if made is None else make_formatter(made, its) for made, its in zip(templates, options, strict=True)
    ]
    is_text = _is_list(optional_args) and all(isinstance(value, str) for value in optional_args)
    columns = {
        'name': each('name', name, _is_list(name)),
        'split': each('split', split, _is_list(split)),
        'size': each('size', size, _is_list(size)),
        'data_files': each('data_files', data_files, several and _is_list(data_files)),
        'optional_args': each('optional_args', optional_args, _is_list(optional_args) and not is_text),
    }
    given = {'image': image_folder, 'video': video_folder, 'audio': audio_folder}
    cache = MediaCache(cache_bytes) if cache_bytes else None
    opened = []
    opener = load_stream if streaming else load_rows
    for index, (source, formatter) in enumerate(zip(sources, formatters, strict=True)):
        rows = opener(source, cache_dir=cache_dir, **{key: values[index] for key, values in columns.items()})
        if formatter is None:
            known = recognised(source, rows, streaming, writes)
            logger.info("'%s' has no template, and the columns of %s, which reads it.", source, known)
            formatter = make_formatter(known.template, {**known.options, **(options[index] or {})})
        named = formatter.folders_of_environment()
        starts = {kind: folder or named.get(kind) for kind, folder in given.items()}
        folders = {kind: str(start) for kind, start in starts.items() if start} | formatter.folders()
        home = str(source_folder(source) or '')
        opened.append(Source(rows, formatter, source, folders, home, streaming, media_options or {}, cache))
    return opened


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def source_names(opened: Sequence[Source]) -> tuple[str, ...]:
    """What metrics call the sources: the name at the end of their path, numbered where several have it."""
    names = [Path(source.name).resolve().name for source in opened]
    return tuple(name if names.count(name) == 1 else f'{name} {number}' for number, name in enumerate(names, 1))
