"""The import paths that documents name lead to the present things, through modules that hold nothing of their own."""

from __future__ import annotations

import importlib
import inspect
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.aliases import ALIAS_MODULES, ALIASES, beyond_an_alias

# Named by documents, and still where they live.
KEPT = (
    'align_anything.models.any_model.AnyModel',
    'align_anything.models.any_model.AnyModelForScore',
    'align_anything.models.pretrained_model.load_pretrained_models',
)


def found_at(path: str) -> Any:
    module, _, name = path.rpartition('.')
    return vars(importlib.import_module(module))[name]


@pytest.mark.parametrize('path', ALIASES)
def test_a_path_of_the_documents_leads_to_the_present_thing(path: str) -> None:
    assert found_at(path) is found_at(ALIASES[path])


@pytest.mark.parametrize('path', KEPT)
def test_what_the_documents_name_is_defined_there(path: str) -> None:
    assert found_at(path).__module__ == path.rpartition('.')[0]


@pytest.mark.parametrize('module', sorted(ALIAS_MODULES))
def test_an_alias_holds_nothing_of_its_own(module: str) -> None:
    assert beyond_an_alias(inspect.getsource(importlib.import_module(module))) == []


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('from a import b\n__all__ = ["b"]', 'no docstring'),
        ('"""What it is."""\nfrom a import b', '__all__ is []'),
        ('"""What it is."""\nfrom a import b\n__all__ = ["b"]\nc = b', 'c = b'),
        ('"""What it is."""\ndef f():\n    from a import b', 'def f'),
        ('"""What it is."""\nif __name__ == "__main__":\n    print(1)', 'print(1)'),
    ],
)
def test_the_check_can_fail(source: str, words: str) -> None:
    assert any(words in problem for problem in beyond_an_alias(source))


def test_the_older_command_writes_a_tiny_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'llama'
    monkeypatch.setattr(sys, 'argv', ['tiny', 'llama', '--out', str(out)])
    monkeypatch.delitem(sys.modules, 'align_anything.models.tiny', raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('align_anything.models.tiny', run_name='__main__')
    assert ended.value.code == 0 and capsys.readouterr().out.splitlines()[-1] == str(out)
    assert (out / 'config.json').is_file() and (out / 'model.safetensors').is_file()
