"""An installed package has every file that its code reads: settings, templates, styles."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.contract.test_style import ROOT, tracked

PACKAGE = ROOT / 'align_anything'


def left_out(files: list[Path], patterns: list[str]) -> list[str]:
    """Returns those of the package's files that are no modules and that no pattern of its package data names."""
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    return [str(path) for path in files if PACKAGE in path.parents and path.suffix != '.py' and path not in shipped]


def test_no_file_is_left_out_of_the_package() -> None:
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    patterns = settings['tool']['setuptools']['package-data']['align_anything']
    assert not left_out(tracked(), patterns)
    templates = list(PACKAGE.glob('reporting/templates/*'))
    assert len(left_out(templates, ['**/*.yaml'])) == len(templates) > 0, 'the check can fail'
