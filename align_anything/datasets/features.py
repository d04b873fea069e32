"""Values of rows that must arrive as they are written, and rows as templates see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from pathlib import Path
from typing import Any

from align_anything.core.types import MediaKind


class Written(float):
    """A number that is written out as it stands in its file: `1.50`, where a float would write `1.5`."""

    def __new__(cls, text: str | float) -> Written:
        made = super().__new__(cls, text)
        made.text = str(text)
        return made

    def __str__(self) -> str:
        return self.text


class Label(int):
    """The number of a class, as `datasets` gives it, that is written out as the name of the class."""

    def __new__(cls, number: int, name: str) -> Label:
        made = super().__new__(cls, number)
        made.name = name
        return made

    def __getnewargs__(self) -> tuple[int, str]:
        return int(self), self.name

    def __str__(self) -> str:
        return self.name


class MediaRecord(dict):
    """The `{'bytes', 'path'}` record of a medium that a table holds, not decoded. `kind` is what it is."""

    kind: MediaKind = 'image'


class AudioRecord(MediaRecord):
    """That of an audio clip; `rate` are the samples per second that its table wants, None for its own."""

    kind: MediaKind = 'audio'
    rate: int | None = None


class MediaPath(str):
    """The path of a medium of a media folder, for which `datasets` would give the medium. `kind` is what it is."""

    kind: MediaKind = 'image'


class AudioPath(MediaPath):
    """That of an audio clip."""

    kind: MediaKind = 'audio'


def media_path(kind: MediaKind, path: Path) -> str:
    """Returns the path of a medium of that kind as rows hold it."""
    return {'image': MediaPath, 'audio': AudioPath}.get(kind, str)(path)


def media_record(kind: MediaKind, content: bytes, path: str) -> dict[str, Any]:
    """Returns the record of a medium of that kind as rows hold it; `path` only names it."""
    return {'image': MediaRecord, 'audio': AudioRecord}.get(kind, dict)(bytes=content, path=path)


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


def as_written(feature: Any, value: Any) -> Any:
    """Returns a value of a table as its feature means it: classes with their names, media as records of their kind.

    Single precision numbers are written with the digits they have.
    """
    from datasets import Audio, ClassLabel, Image, LargeList, List, Value

    if value is None:
        return None
    if isinstance(feature, dict):
        return {key: as_written(feature[key], item) if key in feature else item for key, item in value.items()}
    if isinstance(feature, (List, LargeList)) and isinstance(value, list):
        # Long lists of plain numbers are samples or scores, which nobody writes out.
        return value if isinstance(feature.feature, Value) else [as_written(feature.feature, item) for item in value]
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        # -1 is how datasets write that the class is not known.
        return Label(value, feature.names[value]) if 0 <= value < feature.num_classes else None
    if isinstance(feature, Image) and isinstance(value, dict):
        return MediaRecord(value)
    if isinstance(feature, Audio) and isinstance(value, dict):
        record = AudioRecord(value)
        record.rate = feature.sampling_rate
        return record
    if isinstance(feature, Value) and feature.dtype in ('float16', 'float32') and isinstance(value, float):
        import numpy

        return Written(str(numpy.dtype(feature.dtype).type(value)))
    return value


class RowView(dict):
    """A row as a template sees it: it remembers which columns were `read`, and converts a value when it is read."""

    def __init__(self, row: dict[str, Any], convert: Callable[[Any], Any] | None = None) -> None:
        super().__init__(row)
        self.read: set[str] = set()
        self._convert = convert

    def __getitem__(self, column: str) -> Any:
        value = super().__getitem__(column)
        if column not in self.read:
            self.read.add(column)
            if self._convert is not None:
                value = self._convert(value)
                super().__setitem__(column, value)
        return value

    def __iter__(self) -> Iterator[str]:
        # Python copies a dict without an iterator of its own behind the back of __getitem__.
        return super().__iter__()

    def get(self, column: str, default: Any = None) -> Any:
        return self[column] if column in self else default

    def items(self) -> ItemsView[str, Any]:
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:
        return ValuesView(self)

    def pop(self, column: str, *default: Any) -> Any:
        self.get(column)
        return super().pop(column, *default)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:
        # A row that rides along in `meta` goes to other processes as what it holds.
        return dict, (dict(self),)

    def unread(self) -> dict[str, Any]:
        """Returns the columns that nobody has read yet."""
        return {column: super(RowView, self).__getitem__(column) for column in self if column not in self.read}
