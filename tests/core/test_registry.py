"""Registries refuse duplicates and suggest the nearest name."""

from __future__ import annotations

import pytest

from align_anything.core.errors import DataError, SettingsError
from align_anything.core.registry import Registry, nearest


def test_registers_and_lists_in_order() -> None:
    registry: Registry[type] = Registry('template', DataError)
    registry.register('beta')(int)
    registry.register('Alpha')(str)
    registry.register('beta')(int)  # the same object again: a module imported twice
    assert registry.names() == ['Alpha', 'beta'] and list(registry) == ['Alpha', 'beta']
    assert registry.get('beta') is int and 'beta' in registry and 'gamma' not in registry


def test_another_object_under_a_taken_name_is_refused() -> None:
    registry: Registry[type] = Registry('template', DataError)
    registry.register('beta')(int)
    with pytest.raises(DataError, match="template 'beta' is registered twice"):
        registry.register('beta')(str)


def test_an_unknown_name_brings_the_nearest() -> None:
    registry: Registry[type] = Registry('template', DataError)
    registry.register('Alpaca')(int)
    with pytest.raises(DataError, match=r"unknown template 'alpacca'\. Did you mean 'Alpaca'\? Known: Alpaca\."):
        registry.get('alpacca')
    assert nearest('zzz', ['Alpaca']) == ''


def test_settings_error_lists_every_problem() -> None:
    error = SettingsError(['first', 'second'])
    assert error.problems == ['first', 'second'] and str(error) == '- first\n- second'
