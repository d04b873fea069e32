"""What installed packages bring is found by name, loaded when asked for, and refused with its origin."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align_anything.core.errors import DataError
from align_anything.core.registry import Registry
from tests.harness.packages import lay_package

GROUP = 'align_anything.tests'
MODULE = """
class Hat:
    pass


class Scarf:
    pass


number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`install('hats', {'Hat': 'hats:Hat'})` lays a package where it is found, with a module of its name."""
    before = set(sys.modules)

    def lay(name: str, points: dict[str, str], module: str = MODULE) -> None:
        lay_package(tmp_path / name, name, '1.2', {GROUP: points}, {f'{name}.py': module})
        monkeypatch.syspath_prepend(tmp_path / name)

    yield lay
    for module in set(sys.modules) - before:
        del sys.modules[module]


def hats(package: str = '') -> Registry[type]:
    return Registry(
        'hat', DataError, package=package, group=GROUP, wanted='a class', is_one=lambda value: type(value) is type
    )


def test_a_plugin_is_listed_at_once_and_imported_when_it_is_asked_for(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat', 'Scarf': 'knitting:Scarf'})
    registry = hats()
    registry.register('Bonnet')(int)
    assert registry.names() == ['Bonnet', 'Hat', 'Scarf'] and 'Hat' in registry
    assert registry.get('Bonnet') is int and 'knitting' not in sys.modules
    assert registry.get('Hat').__module__ == 'knitting' and registry.get('Scarf') is registry.get('Scarf')
    with pytest.raises(DataError, match=r"unknown hat 'scraf'\. Did you mean 'Scarf'\? Known: Bonnet, Hat, Scarf\."):
        registry.get('scraf')


def test_a_registry_without_a_group_has_no_plugins(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat'})
    assert Registry('hat', DataError).names() == []


def test_a_plugin_may_register_itself_too(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat'})
    registry = hats()
    own = importlib.import_module('knitting').Hat
    registry.register('Hat')(own)
    assert registry.get('Hat') is own and registry.names() == ['Hat']


def test_a_name_of_something_registered_is_refused_with_both_origins(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat'})
    registry = hats()
    registry.register('Hat')(DataError)
    with pytest.raises(
        DataError,
        match=r"hat 'Hat' is registered twice: by align_anything\.core\.errors\.DataError and by "
        r"the entry point 'Hat = knitting:Hat' of knitting 1\.2\. Rename one, or uninstall its package\.",
    ):
        registry.get('Hat')


def test_a_name_of_this_project_is_refused_before_anything_is_imported(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat', 'Scarf': 'knitting:Scarf'})
    registry = hats('align_anything.core')
    registry.register('Hat')(DataError)
    for ask in (registry.names, lambda: registry.get('Scarf'), lambda: registry.get('Scarf')):
        with pytest.raises(DataError, match=r"'Hat' is registered twice: by align_anything\.core\.errors\.DataError"):
            ask()
    assert 'knitting' not in sys.modules


def test_two_plugins_of_one_name_are_refused_with_both_origins(install: Callable[..., None]) -> None:
    install('knitting', {'Hat': 'knitting:Hat'})
    install('felting', {'Hat': 'felting:Hat'})
    with pytest.raises(DataError) as caught:
        hats().names()
    assert "the entry point 'Hat = knitting:Hat' of knitting 1.2" in str(caught.value)
    assert "the entry point 'Hat = felting:Hat' of felting 1.2" in str(caught.value)


@pytest.mark.parametrize(
    ('point', 'module', 'words'),
    [
        ('knitting:Hat', 'import no_such_wool', "cannot be imported: ModuleNotFoundError: No module named 'no_such_wo"),
        ('knitting:Hat', 'raise SystemExit(0)', 'cannot be imported: SystemExit: 0'),
        ('knitting:Mitten', MODULE, 'cannot be imported: AttributeError'),
        ('knitting:number', MODULE, 'gives 3, but should give a class. Correct the entry point (group align_anything.'),
    ],
)
def test_a_broken_plugin_says_whose_it_is_and_leaves_others_alone(
    install: Callable[..., None], point: str, module: str, words: str
) -> None:
    install('knitting', {'Broken': point}, module)
    install('felting', {'Hat': 'felting:Hat'})
    registry = hats()
    assert registry.names() == ['Broken', 'Hat'] and registry.get('Hat').__module__ == 'felting'
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            registry.get('Broken')
        assert str(caught.value).startswith(
            f"hat 'Broken': the entry point 'Broken = {point}' of knitting 1.2 {words}"
        ) and str(caught.value).endswith('uninstall that package.' if 'imported' in words else 'or uninstall it.')


def test_what_cannot_be_used_is_left_out_of_all_with_one_warning(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install('knitting', {'Torn': 'knitting:Hat'}, 'import no_such_wool')
    install('felting', {'Hat': 'felting:Hat', 'Scarf': 'felting:Hat'})
    registry: Registry[type] = Registry(
        'hat', DataError, group=GROUP, fault=lambda name, value: '' if value.__name__ == name else 'its label is wrong'
    )
    for _ in range(2):
        assert list(registry.usable()) == ['Hat']
    with pytest.raises(DataError, match=r'of felting 1\.2 cannot be used: its label is wrong\. Correct or uninstall'):
        registry.get('Scarf')
    assert caplog.text.count("'Torn = knitting:Hat' of knitting 1.2 cannot be imported") == 1
    assert caplog.text.count("'Scarf = felting:Hat' of felting 1.2 cannot be used: its label is wrong") == 1
