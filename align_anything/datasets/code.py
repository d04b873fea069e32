"""What tells one state of the code that reads rows from another: what it makes may be another thing then."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from align_anything.core.store import digest


@cache
def code_digest(libraries: tuple[str, ...], folders: Iterable[str]) -> str:
    """Returns a digest of the sources in folders of this package, and of the versions of libraries."""
    package = Path(__file__).parents[1]
    files = sorted(file for folder in folders for file in (package / folder).rglob('*.py'))
    return digest(
        [_version(name) for name in libraries], {str(file.relative_to(package)): file.read_bytes() for file in files}
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return 'none'
