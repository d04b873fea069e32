"""Files of JSON lines that grow batch by batch, and stand where the last whole batch left them after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_json, encoded


class AppendedFiles:
    """Appends to several files together, and keeps what is known beside them in another, the last of each batch.

    Args:
        folder: where they are.
        names: of the files.
        state: name of the file that says how far they are whole.
        resume: whether to go on where an earlier run stood; else the files begin anew.

    Raises SettingsError for a state that cannot be read.
    """

    def __init__(self, folder: Path, names: Sequence[str], state: str, resume: bool) -> None:
        self._paths, self._state = {name: folder / name for name in names}, folder / state
        self.kept: dict[str, Any] = self.state_of(folder, state) if resume else {}
        sizes = self.kept.get('bytes', {})
        for name, path in self._paths.items():
            with open(path, 'ab') as file:
                file.truncate(sizes.get(name, 0))
            if path.stat().st_size != sizes.get(name, 0):
                raise SettingsError([f'--resume: {path} is shorter than it was left; start afresh in another folder.'])

    def append(self, records: Mapping[str, Sequence[Mapping[str, Any]]], known: Mapping[str, Any]) -> None:
        """Appends records to the files of these names, and then keeps what is `known`."""
        for name, own in records.items():
            lines = ''.join(json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n' for record in own)
            with open(self._paths[name], 'ab') as file:
                file.write(encoded(lines))
                file.flush()
                os.fsync(file.fileno())
        sizes = {name: path.stat().st_size for name, path in self._paths.items()}
        self.kept = {**known, 'bytes': sizes}
        atomic_write_json(self._state, self.kept)

    @staticmethod
    def state_of(folder: Path, state: str) -> dict[str, Any]:
        """Returns what was kept last in a folder, nothing where nothing was. Raises SettingsError for damage."""
        file = folder / state
        if not file.exists():
            return {}
        try:
            return json.loads(file.read_text(encoding='utf-8'))
        except ValueError as error:
            raise SettingsError([f'--resume: {file} is damaged ({error}); start afresh.']) from error
