"""Packages as an installer leaves them: modules and metadata in a folder of the import path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def lay_package(
    folder: Path, name: str, version: str, points: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]
) -> None:
    """Writes the distribution `name` into `folder`: `points` are entry points by group, `modules` sources by path."""
    for path, source in modules.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source)
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    lines = [line for group, of in points.items() for line in (f'[{group}]', *map(' = '.join, of.items()))]
    (info / 'entry_points.txt').write_text('\n'.join(lines) + '\n')
