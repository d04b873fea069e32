"""Containers of raw rows: read one by one, named for reports, safe to hand to forked workers.

Rows are kept as text or in a memory-mapped table and parsed when they are read. A formatter that writes into its row
can't change the next epoch, and workers share the pages instead of copying Python objects.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.features import Written, as_written, media_path, undecoded
from align_anything.datasets.local_files import MEDIA_SUFFIXES

Row = dict[str, Any]
CHECK_BYTES = 512 * 2**20
"""Files up to this size are parsed once when they are opened, so that a broken line is found before a model loads."""
BOM = b'\xef\xbb\xbf'
SPACE = re.compile(r'[ \t\r\n]*')
DECODER = json.JSONDecoder()
TRAILING_COMMA = re.compile(rb'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)


class Rows(Protocol):
    """Rows with random access.

    `rows[i]` is a fresh dict (media not decoded) or raises `SampleError`; `rows.row_name(i)` names it for reports, by
    its file and its number there (`file:3`) where it is known, else by its source.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def row_name(self, index: int) -> str: ...


class RowStream(Protocol):
    """Rows that can only be read in order; each iteration starts again from the first.

    Yields `(name, row)`; a row that can't be read comes as its `SampleError`.
    """

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]: ...


def parse_json_row(text: bytes, name: str) -> Row:
    """Returns the JSON object in `text`, its numbers as they are written. Raises `SampleError` when there is none."""
    try:
        row = json.loads(text, parse_float=Written)
    except ValueError as error:
        raise SampleError(f'{name}: not valid JSON ({error}): {text[:80].decode(errors="replace")!r}') from error
    if not isinstance(row, dict):
        raise SampleError(f'{name}: a row must be a JSON object {{"column": value, …}}, not a {type(row).__name__}.')
    return row


class JsonLines:
    """A file with one JSON object on each line; blank lines are passed over. One that is packed (`.gz`) is held whole.

    Raises:
        DataError: the file can't be unpacked, or a line can't be parsed (checked for all of the file up to
            `CHECK_BYTES`, past that for its first lines only, later ones become a `SampleError` when they are read).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unpacked = unpacked(path) if is_packed(path) else None
        self._starts, self._lines = array('q'), array('q')
        position = 0
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                if line.removeprefix(BOM).strip():
                    self._starts.append(position)
                    self._lines.append(number)
                    if position < CHECK_BYTES:
                        self._check(line, number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self._open() as file:
            file.seek(self._starts[index])
            return parse_json_row(file.readline().removeprefix(BOM), self.row_name(index))

    def row_name(self, index: int) -> str:
        return f'{self.path}:{self._lines[index]}'

    def _open(self) -> IO[bytes]:
        # Opened for each read: a shared file position would be moved by other forked workers.
        return self.path.open('rb') if self._unpacked is None else io.BytesIO(self._unpacked)

    def _check(self, line: bytes, number: int) -> None:
        try:
            parse_json_row(line.removeprefix(BOM), f'{self.path}:{number}')
        except SampleError as error:
            raise DataError(
                f'{error}\nA .jsonl file holds one JSON object on each line, a .json file may also be a list of them. '
                'Mend or remove this line.'
            ) from error


class TextRows:
    """Rows that are kept as one block of JSON text, numbered from one."""

    def __init__(self, path: Path, texts: Iterable[str]) -> None:
        self.path = path
        self._ends = array('q')
        block = bytearray()
        for text in texts:
            block += text.encode()
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Row:
        start = self._ends[index - 1] if index else 0
        return parse_json_row(self._block[start : self._ends[index]], self.row_name(index))

    def row_name(self, index: int) -> str:
        return f'{self.path}:{index + 1}'


class TableRows:
    """A Hugging Face `Dataset`, media left undecoded. `label` stands before the row number in names."""

    def __init__(self, dataset: Any, label: str) -> None:
        self.label = label
        self._features = undecoded(dataset.features)
        self._table = dataset.with_format('arrow')

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        # Read through arrow and not through the dataset's own format, which would open every image here.
        row = self._table[index].to_pylist()[0]
        return as_written(self._features, self._features.decode_example(row))

    def row_name(self, index: int) -> str:
        return f'{self.label}:{index + 1}'


class JoinedRows:
    """Several stretches `(rows, start, stop)`, one after the other."""

    def __init__(self, stretches: list[tuple[Rows, int, int]]) -> None:
        self._stretches = stretches
        self._ends: list[int] = []
        for _, start, stop in stretches:
            self._ends.append((self._ends[-1] if self._ends else 0) + stop - start)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        rows, at = self._locate(index)
        return rows[at]

    def row_name(self, index: int) -> str:
        rows, at = self._locate(index)
        return rows.row_name(at)

    def _locate(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(f'row {index} of {len(self)}')
        which = bisect_right(self._ends, index)
        rows, start, stop = self._stretches[which]
        return rows, stop - (self._ends[which] - index)


class MediaFolderRows:
    """Rows of the `metadata` file of a folder of images, videos or audio.

    The column `file_name` becomes the column `image` (`video`, `audio` by its suffix), `<x>_file_name` becomes `<x>`,
    `<x>_file_names` the list `<x>`; names are made into paths beside the metadata file. Files aren't touched here, so
    that a missing one costs its own row only.
    """

    def __init__(self, rows: Rows, folder: Path) -> None:
        self._rows, self._folder = rows, folder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row: Row = {}
        for column, value in self._rows[index].items():
            if column == 'file_name':
                row[self._kind(value)] = self._path(value)
            elif column.endswith('_file_name'):
                row[column.removesuffix('_file_name')] = self._path(value)
            elif column.endswith('_file_names'):
                row[column.removesuffix('_file_names')] = [self._path(name) for name in value or []]
            else:
                row[column] = value
        return row

    def row_name(self, index: int) -> str:
        return self._rows.row_name(index)

    def _kind(self, name: Any) -> str:
        return MEDIA_SUFFIXES.get(Path(str(name)).suffix.lower(), 'image')

    def _path(self, name: str | None) -> str | None:
        return media_path(self._kind(name), self._folder / name) if name else None


class JsonLinesStream:
    """JSON lines files read in order, one line in memory at a time."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for path in self._paths:
            with gzip.open(path) if is_packed(path) else path.open('rb') as file:
                for number, line in enumerate(file, start=1):
                    line = line.removeprefix(BOM)
                    if not line.strip():
                        continue
                    name = f'{path}:{number}'
                    try:
                        yield name, parse_json_row(line, name)
                    except SampleError as error:
                        yield name, error


class TableStream:
    """A Hugging Face `IterableDataset`, media left undecoded."""

    def __init__(self, dataset: Any, label: str) -> None:
        self.label = label
        self._features = dataset.features
        # A dataset of unknown features has nothing to decode, and `decode` refuses it.
        self._dataset = dataset.decode(False) if dataset.features else dataset

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for number, row in enumerate(self._dataset, start=1):
            yield f'{self.label}:{number}', as_written(self._features, row) if self._features else dict(row)


class InOrder:
    """Rows with random access, read in order."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for index in range(len(self._rows)):
            name = self._rows.row_name(index)
            try:
                yield name, self._rows[index]
            except SampleError as error:
                yield name, error


class JoinedStream:
    """Several streams, one after the other."""

    def __init__(self, streams: list[RowStream]) -> None:
        self._streams = streams

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for stream in self._streams:
            yield from stream


class FirstRows:
    """The first `size` rows of a stream."""

    def __init__(self, stream: RowStream, size: int) -> None:
        self._stream, self._size = stream, size

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        # zip over the range first: the other order would read, and drop, one row more.
        for _, item in zip(range(self._size), self._stream, strict=False):
            yield item


def joined(parts: list[Rows]) -> Rows:
    """Returns all the rows one after the other."""
    return parts[0] if len(parts) == 1 else JoinedRows([(part, 0, len(part)) for part in parts])


def is_packed(path: Path) -> bool:
    """Whether the file is compressed by gzip, as its name says."""
    return path.suffix.lower() == '.gz'


def unpacked(path: Path) -> bytes:
    """Returns the contents of a file compressed by gzip. Raises DataError for one that is none, or is truncated."""
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path}: cannot be unpacked ({error}). Pack it again with gzip, or unpack it.') from error


def read_csv_text(path: Path) -> Rows:
    """Returns the lines of a comma separated file with a header, every value as text, an empty one as null."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        rows = list(csv.DictReader(file))
    return TextRows(path, (json.dumps({key: value or None for key, value in row.items()}) for row in rows))


def read_json(path: Path, field: str | None = None) -> Rows:
    """Opens a JSON file: one object on each line, or one list of objects (inside the key `field` when given).

    Raises:
        DataError: the file isn't JSON, or holds something else.
    """
    with gzip.open(path) if is_packed(path) else path.open('rb') as file:
        try:
            start, more = file.readline().removeprefix(BOM).strip(), file.readline().strip()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f'{path}: cannot be read ({error}).') from error
    one_object_a_line = bool(more) and start.startswith(b'{') and _is_json(start)
    is_lines = path.name.lower().endswith(('.jsonl', '.jsonl.gz'))
    if field is None and (is_lines or not start or one_object_a_line):
        return JsonLines(path)
    try:
        text, value = _parse_json((unpacked(path) if is_packed(path) else path.read_bytes()).removeprefix(BOM))
    except ValueError as error:
        line = f':{error.lineno}' if isinstance(error, json.JSONDecodeError) else ''
        raise DataError(f'{path}{line}: not valid JSON ({error}). Mend the file or write it again.') from error
    if field is not None:
        if not isinstance(value, dict) or field not in value:
            raise DataError(f"{path}: has no key '{field}', which optional_args 'field' asks for.")
        value = value[field]
    if not isinstance(value, list):
        lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
        hint = f" Set optional_args to 'field={lists[0]}' to read the list under that key." if lists else ''
        raise DataError(
            f'{path}: holds a {type(value).__name__}, not a list of rows.{hint} A single row goes between [ and ].'
        )
    wrong = next((number for number, row in enumerate(value, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(
            f'{path}:{wrong}: entry {wrong} of the list is a {type(value[wrong - 1]).__name__}, not an object '
            '{"column": value, …}. Write every row as an object.'
        )
    # The rows are cut out of the text and not written anew, so that their numbers stay as they are written.
    return TextRows(path, (text[start:stop] for start, stop in _entries(text, _start_of(text, field))))


def _start_of(text: str, field: str | None) -> int:
    """Returns where the value of a valid JSON text begins, or of its key `field`; of several such keys the last."""
    at = SPACE.match(text).end()
    if field is None:
        return at
    found, at = at, SPACE.match(text, at + 1).end()
    while text[at] == '"':
        key, stop = DECODER.raw_decode(text, at)
        start = SPACE.match(text, SPACE.match(text, stop).end() + 1).end()
        if key == field:
            found = start
        _, stop = DECODER.raw_decode(text, start)
        at = SPACE.match(text, stop).end()
        if text[at] == ',':
            at = SPACE.match(text, at + 1).end()
    return found


def _entries(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Yields where each entry of the list that begins at `at` of a valid JSON text starts and stops."""
    at = SPACE.match(text, at + 1).end()
    while text[at] != ']':
        _, stop = DECODER.raw_decode(text, at)
        yield at, stop
        at = SPACE.match(text, stop).end()
        if text[at] == ',':
            at = SPACE.match(text, at + 1).end()


def _parse_json(content: bytes) -> tuple[str, Any]:
    """Returns a JSON text and its value; a comma after the last entry, common in files written by hand, is forgiven."""
    try:
        return content.decode(), json.loads(content)
    except ValueError:
        forgiving = TRAILING_COMMA.sub(lambda match: match[1] or b'', content)
        # What is reported must be where it stands in the file.
        return forgiving.decode(), json.loads(forgiving if _is_json(forgiving) else content)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
