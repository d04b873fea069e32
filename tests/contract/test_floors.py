"""Imports go downward only, never to a sibling on the same floor, never in a circle (docs/architecture.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contract.aliases import ALIAS_MODULES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'align_anything'

FLOORS = {
    'core': 0,
    'configs': 1,
    'losses': 1,
    'datasets': 2,
    'models': 2,
    'environments': 3,
    'policies': 3,
    'algorithms': 4,
    'engines': 4,
    'rollouts': 4,
    'rewards': 4,
    'reporting': 5,
    'trainers.pairs': 1,
    'metrics': 6,
    'trainers.loops': 6,
    'trainers.runs': 7,
    'trainers.launch': 8,
    'serve': 10,
    'evaluation': 10,
    'cli': 11,
    'testing': 11,
    'api': 12,
}
LEAVES = 9  # trainers/<modality pair>
RUNS = 'align_anything.trainers.runs'
INNER_FLOORS = 5
HEAVY = {'transformers', 'deepspeed', 'peft', 'vllm', 'diffusers', 'bitsandbytes'}
HEAVY |= {'wandb', 'clearml', 'mlflow', 'swanlab'}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def package_of(module: str) -> str:
    """Returns the package that has a floor: `datasets`, `trainers.runs`, `trainers.text_to_text`; '' for the root."""
    parts = module.split('.')[1:]
    if not parts:
        return ''
    if parts[0] == 'trainers' and len(parts) > 1:
        return '.'.join(parts[:2])
    return parts[0]


def floor_of(package: str) -> int | None:
    """Returns the floor of a package; the bare root and `trainers` hold no code and sit with the vocabulary."""
    if package in ('', 'trainers'):
        return 0
    if package.startswith('trainers.') and package not in FLOORS:
        return LEAVES
    return FLOORS.get(package)


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
    package = package_of(module)
    floor = floor_of(package)
    if floor is None:
        return [f'{module}: package "{package}" has no floor; give it one here and in docs/architecture.md']
    problems = []
    for line, target in imports_of(source, module, is_package):
        if target.split('.')[0] != 'align_anything' or target == 'align_anything.__version__':
            continue
        other = package_of(target)
        other_floor = floor_of(other)
        if other == package:
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


def import_graph(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Returns the modules that each module imports, given source and whether it is a package by name.

    Imports in functions and for type checks count. A package that Python imports on the way to a module of it does not.
    """
    graph = {}
    for module, (source, is_package) in sources.items():
        targets = {target for _, target in imports_of(source, module, is_package)}
        # What is no module is a name in one.
        targets = {target if target in sources else target.rpartition('.')[0] for target in targets}
        graph[module] = targets & sources.keys()
    return graph


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Returns the modules that `start` imports, itself or through others."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        ahead += graph[ahead.pop()] - found
        found |= set(ahead)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Returns the strongly connected components of more than one module, and modules that import themselves."""
    ahead = {module: reached(graph, module) for module in graph}
    found = {frozenset(other for other in ahead[module] if module in ahead[other]) for module in graph}
    return sorted(sorted(component) for component in found if component)


def alias_users(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Returns the modules that import aliases, with these."""
    found = {module: targets & ALIAS_MODULES for module, targets in graph.items()}
    return {module: targets for module, targets in found.items() if targets}


@pytest.fixture(scope='module')
def graph() -> dict[str, set[str]]:
    return import_graph({module_name(path): (path.read_text(), path.name == '__init__.py') for path in modules()})


def inner_floors(graph: Mapping[str, set[str]], package: str) -> dict[str, int]:
    """Returns the floor of each module inside a package: one above the highest module there that it imports."""
    own = {module: {*targets} & {*inside(graph, package)} for module, targets in graph.items()}
    floors: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in floors:
            floors[module] = 1 + max(map(floor, own[module]), default=0)
        return floors[module]

    return {module: floor(module) for module in inside(graph, package)}


def inside(graph: Mapping[str, set[str]], package: str) -> list[str]:
    """Returns the modules of a package, itself left out."""
    return sorted(module for module in graph if module.startswith(f'{package}.'))


def listed(floors: Mapping[str, int]) -> str:
    """Returns the floors with their modules, the highest first."""
    names = {
        floor: [module.rpartition('.')[2] for module in floors if floors[module] == floor]
        for floor in {*floors.values()}
    }
    return '\n'.join(f'{floor}: {", ".join(names[floor])}' for floor in sorted(names, reverse=True))


def test_every_import_goes_down() -> None:
    problems = []
    for path in modules():
        # Aliases lead to what may live on a floor above; tests/contract/test_document_paths.py keeps them thin.
        if module_name(path) not in ALIAS_MODULES:
            problems += violations(path.read_text(), module_name(path), path.name == '__init__.py')
    assert not problems, '\n'.join(problems)


def test_no_imports_go_in_a_circle(graph: dict[str, set[str]]) -> None:
    # That the graph has the imports at all: a name of a module, a module of a package, and one inside a function.
    assert 'align_anything.core.types' in graph['align_anything.datasets.chat_template']
    assert 'align_anything.models.structure' in graph['align_anything.models.family']
    assert 'align_anything.cli.leaves' in graph['align_anything.cli.main']
    assert circles(graph) == []


def test_the_wiring_of_a_run_has_at_most_five_floors_inside(graph: dict[str, set[str]]) -> None:
    floors = inner_floors(graph, RUNS)
    assert floors[f'{RUNS}.settings'] == 1 and floors[f'{RUNS}.online'] > floors[f'{RUNS}.begin']
    assert max(floors.values()) <= INNER_FLOORS, f'floors inside {RUNS}:\n{listed(floors)}'


def test_the_count_of_inner_floors_can_fail() -> None:
    chain = {f'{RUNS}.m{number}': (f'def f():\n    from {RUNS} import m{number - 1}', False) for number in range(1, 7)}
    sources = {RUNS: ('', True), **chain, f'{RUNS}.m0': ('import align_anything.core.x', False)}
    sources['align_anything.core.x'] = ('import os', False)
    floors = inner_floors(import_graph(sources), RUNS)
    assert floors == {f'{RUNS}.m{number}': number + 1 for number in range(7)}
    assert listed(floors).splitlines()[0] == '7: m6' and max(floors.values()) > INNER_FLOORS


def test_only_users_import_aliases(graph: dict[str, set[str]]) -> None:
    assert ALIAS_MODULES <= graph.keys()
    assert alias_users(graph) == {}


def test_the_search_for_circles_and_aliases_can_fail() -> None:
    sources = {
        'p': ('from p import a', True),
        'p.a': ('from p.b import name\nfrom p import c', False),
        'p.b': ('def f():\n    from . import c', False),
        'p.c': ('if TYPE_CHECKING:\n    import p.a', False),
        'p.d': ('from p.a import name\nimport p.d', False),
        'p.e': ('from align_anything.models.llava import AccustomedLlavaModel', False),
        'align_anything.models.llava': ('', False),
    }
    graph = import_graph(sources)
    assert circles(graph) == [['p.a', 'p.b', 'p.c'], ['p.d']]
    assert alias_users(graph) == {'p.e': {'align_anything.models.llava'}}
    assert circles(import_graph({**sources, 'p.c': ('', False), 'p.d': ('', False)})) == []


def test_the_vocabulary_needs_only_torch_and_safetensors() -> None:
    allowed = set(sys.stdlib_module_names) | {'torch', 'safetensors', 'align_anything'}
    strangers = {path.name: top_level_names(path) - allowed for path in modules() if path.parent.name == 'core'}
    assert not any(strangers.values()), strangers


@pytest.mark.parametrize('package', ['configs', 'losses', 'datasets'])
def test_light_packages_import_nothing_heavy(package: str) -> None:
    heavy = {path.name: top_level_names(path) & HEAVY for path in (PACKAGE / package).rglob('*.py')}
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
        ('align_anything.trainers.a_to_b.sft', 'from align_anything.trainers.c_to_d import sft', 'sibling on floor 9'),
        ('align_anything.attic.x', '', 'has no floor'),
    ],
)
def test_the_check_can_fail(module: str, source: str, words: str) -> None:
    problems = violations(source, module)
    assert len(problems) == 1 and words in problems[0]


def test_downward_and_same_package_imports_pass() -> None:
    for source in (
        'from align_anything.core.types import Batch',
        'from .base import x',
        'import align_anything.losses',
    ):
        assert violations(source, 'align_anything.algorithms.sft') == []
