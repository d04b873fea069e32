"""The media of responses as files beside their records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.core.types import MEDIA_KINDS, CodedMedia, decoded_medium
from align_anything.datasets.media.writing import files_of

FOLDER = 'completions'


class MediaFiles:
    """Writes generated media to `<folder>/<step>/<name>_<medium>`, each with the suffix of its kind.

    Images are PNG, audio WAV, videos animated PNG and MP4 with a WAV of their sound; codes that no codec decodes are
    JSON, in the form in which rows bring codes.

    Args:
        folder: of the run.
        resume_step: step that the run goes on from, whose later files are dropped; None starts afresh, and the older
            folder is kept as `<folder>.old`.
        name: of the folder in it.
    """

    def __init__(self, folder: Path, resume_step: int | None, name: str = FOLDER) -> None:
        self._run, self._folder = folder, folder / name
        if not self._folder.exists():
            return
        if resume_step is None:
            old = self._folder.with_name(f'{name}.old')
            shutil.rmtree(old, ignore_errors=True)
            self._folder.replace(old)
            return
        for step in self._folder.iterdir():
            if step.name.isdecimal() and int(step.name) > resume_step:
                shutil.rmtree(step)

    def write(self, step: int, name: str, parts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Writes the media of a response, which `name` tells from others of the step.

        Returns the files in the order of the media, as paths in the folder of the run.
        """
        media = enumerate((part for part in parts if part['type'] in MEDIA_KINDS), 1)
        return [
            self.write_file(step, f'{name}_{number}{suffix}', content)
            for number, part in media
            for suffix, content in _files(part)
        ]

    def write_file(self, step: int, name: str, content: bytes) -> str:
        """Writes a file of a step, and returns its path in the folder of the run."""
        file = self._folder / f'{step:08d}' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file.relative_to(self._run).as_posix()


def _files(part: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    kind, medium = part['type'], decoded_medium(part)
    if medium is not None:
        return files_of(kind, medium)
    coded: CodedMedia | None = part.get(kind)
    if coded is None:
        return []
    return [('.json', json.dumps({'codes': coded.codes.tolist(), 'codec': coded.codec}).encode())]
