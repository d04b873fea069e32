"""Imports go downward only, never to a sibling on the same floor (docs/architecture.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'align_anything'

FLOORS = {
    'core': 0,
    'configs': 1,
    'losses': 1,
    'datasets': 2,
    'models': 2,
    'policies': 3,
    'algorithms': 4,
    'engines': 4,
    'rollouts': 4,
    'rewards': 4,
    'reporting': 5,
    'trainers.pairs': 1,
    'trainers.loops': 6,
    'trainers.runs': 7,
    'serve': 9,
    'evaluation': 9,
    'cli': 10,
    'testing': 10,
}
LEAVES = 8  # trainers/<modality pair>
HEAVY = {'transformers', 'deepspeed', 'peft', 'vllm', 'diffusers', 'wandb', 'clearml', 'bitsandbytes'}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room_of(module: str) -> str:
    """Returns the package that has a floor: `datasets`, `trainers.runs`, `trainers.text_to_text`; '' for the root."""
    parts = module.split('.')[1:]
    if not parts:
        return ''
    if parts[0] == 'trainers' and len(parts) > 1:
        return '.'.join(parts[:2])
    return parts[0]


def floor_of(room: str) -> int | None:
    """Returns the floor of a package; the bare root and `trainers` hold no code and sit with the vocabulary."""
    if room in ('', 'trainers'):
        return 0
    if room.startswith('trainers.') and room not in FLOORS:
        return LEAVES
    return FLOORS.get(room)


def imports_of(source: str, module: str, is_package: bool, top_only: bool = False) -> list[tuple[int, str]]:
    """Returns (line, imported module) for every import, also those inside functions unless `top_only`."""
    tree = ast.parse(source)
    nodes = tree.body if top_only else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                here = module.split('.') if is_package else module.split('.')[:-1]
                base = '.'.join([*here[: len(here) - node.level + 1], *filter(None, [base])])
            # `from package import name` may name a module: the longer form tells which package it is in.
            found += [(node.lineno, f'{base}.{alias.name}') for alias in node.names]
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Returns what is wrong with one module's imports of this package."""
    room = room_of(module)
    floor = floor_of(room)
    if floor is None:
        return [f'{module}: package "{room}" has no floor; give it one here and in docs/architecture.md']
    problems = []
    for line, target in imports_of(source, module, is_package):
        if target.split('.')[0] != 'align_anything' or target == 'align_anything.__version__':
            continue
        other = room_of(target)
        other_floor = floor_of(other)
        if other == room:
            continue
        if other_floor is None:
            problems.append(f'{module}:{line} imports {target}, whose package has no floor')
        elif other_floor > floor:
            problems.append(f'{module}:{line} (floor {floor}) imports {target}, up on floor {other_floor}')
        elif other_floor == floor and other:
            problems.append(f'{module}:{line} imports {target}, a sibling on floor {floor}')
    return problems


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob('*.py'))


def top_level_names(path: Path) -> set[str]:
    """Returns the outside packages that importing the file itself imports."""
    found = imports_of(path.read_text(), module_name(path), path.name == '__init__.py', top_only=True)
    return {target.split('.')[0] for _, target in found}


def test_every_import_goes_down() -> None:
    problems = []
    for path in modules():
        problems += violations(path.read_text(), module_name(path), path.name == '__init__.py')
    assert not problems, '\n'.join(problems)


def test_the_vocabulary_needs_only_torch_and_safetensors() -> None:
    allowed = set(sys.stdlib_module_names) | {'torch', 'safetensors', 'align_anything'}
    strangers = {path.name: top_level_names(path) - allowed for path in modules() if path.parent.name == 'core'}
    assert not any(strangers.values()), strangers


@pytest.mark.parametrize('room', ['configs', 'losses', 'datasets'])
def test_light_rooms_import_nothing_heavy(room: str) -> None:
    heavy = {path.name: top_level_names(path) & HEAVY for path in (PACKAGE / room).rglob('*.py')}
    assert not any(heavy.values()), {name: found for name, found in heavy.items() if found}


def test_only_runs_with_adapters_wait_for_their_library() -> None:
    assert not [path for path in modules() if 'peft' in top_level_names(path)]


@pytest.mark.parametrize(
    ('module', 'source', 'words'),
    [
        ('align_anything.datasets.x', 'from align_anything.models.family import FamilySpec', 'sibling on floor 2'),
        ('align_anything.core.x', 'import align_anything.configs.schema', 'up on floor 1'),
        ('align_anything.losses.x', 'def f():\n    from align_anything import engines', 'up on floor 4'),
        ('align_anything.policies.x', 'from ..trainers.runs import offline', 'up on floor 7'),
        ('align_anything.trainers.a_to_b.sft', 'from align_anything.trainers.c_to_d import sft', 'sibling on floor 8'),
        ('align_anything.attic.x', '', 'has no floor'),
    ],
)
def test_the_check_can_fail(module: str, source: str, words: str) -> None:
    problems = violations(source, module)
    assert len(problems) == 1 and words in problems[0]


def test_downward_and_same_room_imports_pass() -> None:
    for source in (
        'from align_anything.core.types import Batch',
        'from .base import x',
        'import align_anything.losses',
    ):
        assert violations(source, 'align_anything.algorithms.sft') == []
