"""Rules of the house that a linter does not know (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 500
# Programs that talk to a person on standard output.
MAY_PRINT = ('align_anything/cli/', 'align_anything/testing/tiny/', 'align_anything/reporting/console.py')
# Written in pieces, so that this file does not find itself.
REGISTRY_HOSTS = re.compile(
    '|'.join([r'python' + r'hosted\.org', r'pypi' + r'\.org', r'npm' + r'js\.', r'deb\.' + 'debian'])
)
MACHINE_PATHS = re.compile(r'(?<![\w.$}~])/(?:' + '|'.join(['wo' + 'rk', 'ro' + 'ot', 'fa' + 'rm']) + r')/[a-z.]')


def tracked() -> list[Path]:
    """Returns the files git tracks, or all but the environment's where there is no git (a source archive)."""
    if not (ROOT / '.git').exists():
        return [path for path in ROOT.rglob('*') if path.is_file() and '.venv' not in path.parts]
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split('\0') if name and (ROOT / name).is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == '.py' and name_of(path).startswith(folders)]


def library_problems(source: str, name: str) -> list[str]:
    """Returns the constructs in one library file that the house does not allow."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ('eval', 'exec', 'hasattr'):
                problems.append(f'{name}:{node.lineno} calls {called}()')
            elif called in ('pickle.load', 'pickle.loads'):
                problems.append(f'{name}:{node.lineno} calls {called}(), which runs code out of a file')
            elif called == 'print' and not name.startswith(MAY_PRINT):
                problems.append(f'{name}:{node.lineno} prints; use core.logging')
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                problems.append(f'{name}:{node.lineno} has a bare except')
            elif ast.unparse(node.type) in ('Exception', 'BaseException') and not _raises(node):
                problems.append(f'{name}:{node.lineno} swallows every exception')
    return problems


def _raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def complaints(check: Callable[[str, str], list[str]], paths: list[Path]) -> str:
    return '\n'.join(problem for path in paths for problem in check(path.read_text(encoding='utf-8'), name_of(path)))


def test_library_code_keeps_the_rules() -> None:
    found = complaints(library_problems, sources('align_anything/'))
    assert not found, found


def test_files_are_short() -> None:
    long = {
        name_of(path): len(path.read_text().splitlines()) for path in sources('align_anything/', 'tests/', 'scripts/')
    }
    long = {name: lines for name, lines in long.items() if lines > MAX_LINES}
    assert not long, f'over {MAX_LINES} lines: {long}'


def test_no_registry_hosts_and_no_paths_of_one_machine() -> None:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b'\0' in data:
            continue
        for number, line in enumerate(data.decode('utf-8').splitlines(), 1):
            if REGISTRY_HOSTS.search(line) or MACHINE_PATHS.search(line):
                found.append(f'{name_of(path)}:{number}: {line.strip()[:100]}')
    assert not found, '\n'.join(found)


def test_every_library_module_says_what_it_is() -> None:
    texts = {name_of(path): path.read_text() for path in sources('align_anything/')}
    silent = [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not silent, f'no module docstring: {silent}'


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('eval("1")', 'calls eval'),
        ('hasattr(x, "y")', 'calls hasattr'),
        ('import pickle\npickle.load(f)', 'runs code'),
        ('print(1)', 'prints'),
        ('try:\n    f()\nexcept:\n    raise', 'bare except'),
        ('try:\n    f()\nexcept Exception:\n    pass', 'swallows'),
    ],
)
def test_the_check_can_fail(source: str, words: str) -> None:
    problems = library_problems(source, 'align_anything/x.py')
    assert len(problems) == 1 and words in problems[0]


def test_what_is_allowed_passes() -> None:
    source = 'model.eval()\ntry:\n    f()\nexcept Exception as error:\n    raise ValueError from error'
    assert library_problems(source, 'align_anything/x.py') == []
    assert library_problems('print(1)', 'align_anything/cli/main.py') == []
    assert MACHINE_PATHS.search('cd /' + 'wo' + 'rk/main') and not MACHINE_PATHS.search('docs/wo' + 'rk/notes')
