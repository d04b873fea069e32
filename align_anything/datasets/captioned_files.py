"""Media and what is said of them as plain files: captions beside media, tar archives of both, and lists of lines.

The files of one row share a name: `x.png` and `x.txt`, as in kohya's scripts and webdataset, and `x.json` with more
columns. Only their names are kept; they are read with their row.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.core.files import lines_of
from align_anything.core.logging import get_logger
from align_anything.core.types import MEDIA_KINDS
from align_anything.datasets.features import media_path, media_record
from align_anything.datasets.local_files import MEDIA_SUFFIXES, lists_of_media
from align_anything.datasets.rows import BOM, Row, Rows, TextRows, joined, parse_json_row

logger = get_logger(__name__)

CAPTIONS = {'txt': 'text', 'caption': 'caption'}
"""Columns of texts, by the suffix of their files."""
REPEATED = re.compile(r'(\d+)_(.+)')
"""How a folder is called whose media kohya's scripts repeat: how often, and what is to be seen."""


def captioned_media(media: Sequence[Path]) -> Rows | None:
    """Returns rows of media with a caption in a file beside each; None where not one of them has one.

    The medium is the column `image` (`video`, `audio`), `x.txt` the column `text`, `x.caption` the column `caption`,
    and the keys of `x.json` are columns. Media in a folder called `10_dog` come ten times, as kohya's scripts have it;
    where none of them has a caption, `dog` is the caption of all.
    """
    beside = {folder: {file.name for file in folder.iterdir()} for folder in dict.fromkeys(map(_folder, media))}
    rows: list[dict[str, Any]] = []
    has_captions = Counter()
    for file in media:
        said = [suffix for suffix in (*CAPTIONS, 'json') if f'{file.stem}.{suffix}' in beside[file.parent]]
        has_captions[file.parent] += bool(said)
        rows.append({'medium': str(file), 'said': said})
    repeats = {folder: found for folder in beside if (found := REPEATED.fullmatch(folder.name))}
    if not has_captions.total() and not repeats:
        return None
    for folder, found in repeats.items():
        named = '' if has_captions[folder] else f", and have its name '{found[2]}' as their caption"
        logger.info("%s: the media of a folder called '%s' come %s times%s.", folder, folder.name, found[1], named)
    texts = []
    for file, row in zip(media, rows, strict=True):
        found = repeats.get(file.parent)
        name = {'text': found[2]} if found and not has_captions[file.parent] else {}
        texts += [json.dumps({**row, **name})] * (int(found[1]) if found else 1)
    lost = [folder / name for folder, names in beside.items() for name in _captions_of_nothing(names)]
    if lost:
        logger.warning('%d captions have no medium beside them, such as %s.', len(lost), lost[0])
    return CaptionedRows(TextRows(media[0].parent, texts))


class CaptionedRows:
    """Rows of media with captions beside them, by an index of `{'medium', 'said'}`; files are read with their row."""

    def __init__(self, index: TextRows) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Row:
        entry = self._index[index]
        medium = Path(entry['medium'])
        said = {suffix: medium.with_suffix(f'.{suffix}').read_bytes for suffix in entry['said']}
        kind = MEDIA_SUFFIXES[medium.suffix.lower()]
        # Null where there is no caption, so that what is missing is the caption and not a column.
        return {'text': entry.get('text'), **_row(said, str(medium)), kind: media_path(kind, medium.absolute())}

    def row_name(self, index: int) -> str:
        return self._index[index]['medium']


class TarRows:
    """Rows of a tar archive whose members of one name are a row, as webdataset writes them.

    The name ends at the first dot behind the last slash. A medium is the column `image` (`video`, `audio`), or where
    more stands between name and suffix (`0.input.png`) the column of that name; `txt` is the column `text`, the keys
    of `json` are columns, and any other text is a column called by its suffix. Members are read where they lie.

    Raises:
        DataError: it is no tar archive, or one that is compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, 'r:') as archive:
                for member in archive:
                    folder, _, file = member.name.rpartition('/')
                    name, dot, suffix = file.partition('.')
                    if member.isfile() and dot and name:
                        members.setdefault(f'{folder}/{name}', {})[suffix] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise DataError(
                f'{path}: cannot be read as a tar archive ({error}). One that is packed: unpack.'
            ) from error
        self._index = TextRows(path, map(json.dumps, members.values()))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Row:
        name = self.row_name(index)
        said: dict[str, Callable[[], bytes]] = {}
        media: dict[str, Any] = {}
        for suffix, place in self._index[index].items():
            column, _, last = suffix.rpartition('.')
            kind = MEDIA_SUFFIXES.get(f'.{last.lower()}')
            if kind is None:
                said[suffix] = partial(self._content, *place)
            elif (column or kind) in media:
                raise SampleError(f'{name}: holds two {kind} files of one name.')
            else:
                media[column or kind] = media_record(kind, self._content(*place), f'{name}.{suffix}')
        return {**_row(said, name), **media}

    def row_name(self, index: int) -> str:
        return self._index.row_name(index)

    def _content(self, start: int, size: int) -> bytes:
        # Opened for each read: a shared file position would be moved by other forked workers.
        with self.path.open('rb') as file:
            file.seek(start)
            return file.read(size)


def line_rows(files: Sequence[Path]) -> Rows:
    """Returns a row for each line of texts: `prompt`; or of a list of prompts and one of media, both in one row.

    Such lists are called `prompts.txt` and `videos.txt` (`images.txt`, `audios.txt`), and their columns `text` and
    `video`; each line of one belongs to that of the other. Blank lines are passed over where there is one list.

    Raises:
        DataError: a file is no text, or the lists have not as many lines.
    """
    pair = lists_of_media(files)
    if not pair:
        return joined([TextRows(file, _as_prompts(_lines(file))) for file in files])
    prompts, media = map(_lines, pair)
    if len(prompts) != len(media):
        raise DataError(
            f'{pair[0]} has {len(prompts)} lines and {pair[1].name} {len(media)}: each line of one belongs to that of '
            'the other, so there should be as many.'
        )
    kind = next(kind for kind in MEDIA_KINDS if pair[1].stem.lower().startswith(kind))
    rows = ({'text': text or None, kind: path or None} for text, path in zip(prompts, media, strict=True))
    return TextRows(pair[0], map(json.dumps, rows))


def _as_prompts(lines: Iterable[str]) -> Iterator[str]:
    return (json.dumps({'prompt': line}) for line in lines if line)


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without the blank ones at its end."""
    return [line.strip() for line in lines_of(_decoded(file.read_bytes(), str(file), DataError).rstrip())]


def _folder(file: Path) -> Path:
    return file.parent


def _captions_of_nothing(names: set[str]) -> list[str]:
    """The captions among the files of a folder that no medium has."""
    media = {Path(name).stem for name in names if Path(name).suffix.lower() in MEDIA_SUFFIXES}
    return sorted(name for name in names if Path(name).suffix[1:] in CAPTIONS and Path(name).stem not in media)


def _row(said: Mapping[str, Callable[[], bytes]], name: str) -> Row:
    """The columns that files hold by their suffixes. Raises SampleError for one that is no text or no JSON."""
    row: Row = {}
    for suffix, read in said.items():
        if suffix == 'json':
            row = {**parse_json_row(read().removeprefix(BOM), f'{name} (its .json)'), **row}
        else:
            row[CAPTIONS.get(suffix, suffix)] = _decoded(read(), f'{name} (its .{suffix})', SampleError).strip()
    return row


def _decoded(content: bytes, where: str, error: type[DataError] | type[SampleError]) -> str:
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as cause:
        raise error(f'{where}: is no text in UTF-8 ({cause}). Write it again as UTF-8.') from cause
