"""Containers of raw rows: read one by one, named for reports, safe to hand to forked workers.

Rows are kept as text or in a memory-mapped table and parsed when they are read. A formatter that writes into its row
can't change the next epoch, and workers share the pages instead of copying Python objects.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from align_anything.core.errors import DataError, SampleError

Row = dict[str, Any]
CHECK_BYTES = 512 * 2**20
"""Files up to this size are parsed once when they are opened, so that a broken line is found before a model loads."""
BOM = b'\xef\xbb\xbf'
TRAILING_COMMA = re.compile(rb'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)


class Rows(Protocol):
    """Rows with random access.

    `rows[i]` is a fresh dict (media not decoded) or raises `SampleError`; `rows.row_name(i)` names it for reports.
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
    """Returns the JSON object in `text`. Raises `SampleError` naming the row when there is none."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise SampleError(f'{name}: not valid JSON ({error}): {text[:80].decode(errors="replace")!r}') from error
    if not isinstance(row, dict):
        raise SampleError(f'{name}: a row must be a JSON object {{"column": value, …}}, not a {type(row).__name__}.')
    return row


def undecoded(feature: Any) -> Any:
    """Returns the Hugging Face feature with every Image, Audio and Video in it left as its bytes or path."""
    from datasets import Audio, Image, LargeList, List, Video

    if isinstance(feature, (Audio, Image, Video)):
        return dataclasses.replace(feature, decode=False)
    if isinstance(feature, dict):
        return type(feature)({key: undecoded(value) for key, value in feature.items()})
    if isinstance(feature, (List, LargeList)):
        return dataclasses.replace(feature, feature=undecoded(feature.feature))
    return feature


class JsonLines:
    """A file with one JSON object on each line; blank lines are passed over.

    Raises:
        DataError: a line can't be parsed (checked for all of the file up to `CHECK_BYTES`, past that for its first
            lines only, later ones become a `SampleError` when they are read).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines = array('q'), array('q')
        position = 0
        with path.open('rb') as file:
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
        # Opened for each read: a shared file position would be moved by other forked workers.
        with self.path.open('rb') as file:
            file.seek(self._starts[index])
            return parse_json_row(file.readline().removeprefix(BOM), self.row_name(index))

    def row_name(self, index: int) -> str:
        return f'{self.path}:{self._lines[index]}'

    def _check(self, line: bytes, number: int) -> None:
        try:
            parse_json_row(line.removeprefix(BOM), f'{self.path}:{number}')
        except SampleError as error:
            raise DataError(
                f'{error}\nA .jsonl file holds one JSON object on each line, a .json file may also be a list of them. '
                'Mend or remove this line.'
            ) from error


class JsonList:
    """The rows of a JSON list, kept as one block of text."""

    def __init__(self, path: Path, rows: list[Any]) -> None:
        self.path = path
        self._ends = array('q')
        block = bytearray()
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise DataError(
                    f'{path}:{number}: entry {number} of the list is a {type(row).__name__}, not an object '
                    '{"column": value, …}. Write every row as an object.'
                )
            block += json.dumps(row).encode()
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Row:
        start = self._ends[index - 1] if index else 0
        return json.loads(self._block[start : self._ends[index]])

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
        return self._features.decode_example(self._table[index].to_pylist()[0])

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

    SUFFIX_KIND = {
        **dict.fromkeys(('.mp4', '.mkv', '.avi', '.mov', '.webm'), 'video'),
        **dict.fromkeys(('.wav', '.mp3', '.flac', '.ogg', '.opus', '.m4a'), 'audio'),
    }

    def __init__(self, rows: Rows, folder: Path) -> None:
        self._rows, self._folder = rows, folder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row: Row = {}
        for column, value in self._rows[index].items():
            if column == 'file_name':
                row[self.SUFFIX_KIND.get(Path(str(value)).suffix.lower(), 'image')] = self._path(value)
            elif column.endswith('_file_name'):
                row[column.removesuffix('_file_name')] = self._path(value)
            elif column.endswith('_file_names'):
                row[column.removesuffix('_file_names')] = [self._path(name) for name in value or []]
            else:
                row[column] = value
        return row

    def row_name(self, index: int) -> str:
        return self._rows.row_name(index)

    def _path(self, name: str | None) -> str | None:
        return str(self._folder / name) if name else None


class JsonLinesStream:
    """JSON lines files read in order, one line in memory at a time."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for path in self._paths:
            with path.open('rb') as file:
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
        # A dataset of unknown features has nothing to decode, and `decode` refuses it.
        self._dataset = dataset.decode(False) if dataset.features else dataset

    def __iter__(self) -> Iterator[tuple[str, Row | SampleError]]:
        for number, row in enumerate(self._dataset, start=1):
            yield f'{self.label}:{number}', dict(row)


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


def read_csv_text(path: Path) -> list[Row]:
    """Returns the lines of a comma separated file with a header, every value as text."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        return list(csv.DictReader(file))


def read_json(path: Path, field: str | None = None) -> Rows:
    """Opens a JSON file: one object on each line, or one list of objects (inside the key `field` when given).

    Raises:
        DataError: the file isn't JSON, or holds something else.
    """
    with path.open('rb') as file:
        start, more = file.readline().removeprefix(BOM).strip(), file.readline().strip()
    one_object_a_line = bool(more) and start.startswith(b'{') and _is_json(start)
    if field is None and (path.suffix == '.jsonl' or not start or one_object_a_line):
        return JsonLines(path)
    try:
        value = _parse_json(path.read_bytes().removeprefix(BOM))
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
    return JsonList(path, value)


def _parse_json(text: bytes) -> Any:
    """Returns the value of a JSON text; a comma after the last entry, common in files written by hand, is forgiven."""
    try:
        return json.loads(text)
    except ValueError:
        forgiving = TRAILING_COMMA.sub(lambda match: match[1] or b'', text)
        # What is reported must be where it stands in the file.
        return json.loads(forgiving) if _is_json(forgiving) else json.loads(text)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
