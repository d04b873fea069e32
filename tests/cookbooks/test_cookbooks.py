"""Every cookbook runs, and its notebook is that of its source, with outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from scripts.cookbooks import FOLDER, cells_of, names, notebook_of, run_by_kernel, run_here
from tests.harness.notebooks import in_a_process
from tests.harness.pairwise import first_of

MADE = names()
QUICK = ('text_dpo',)
"""Those that `make test` runs; all are run by `make extended`."""
README = (FOLDER / 'README.md').read_text(encoding='utf-8')
INCUMBENTS = ('text_to_text_dpo', 'text_image_to_text_sft', 'modality_scaling')
"""The notebooks of align-anything."""


def shown(cells: list[Any]) -> Iterator[tuple[str, set[str]]]:
    """The source of each cell with code, and the forms of what it shows: `image/png`, `text/html` …"""
    for cell in cells:
        if cell['cell_type'] == 'code':
            forms = {form for output in cell['outputs'] for form in output.get('data', {})}
            yield ''.join(cell['source']), forms


def curves_are_seen(cells: list[Any]) -> bool:
    """Whether each cell that plots shows a picture."""
    drawn = [forms for source, forms in shown(cells) if '.plot(' in source]
    return bool(drawn) and all('image/png' in forms for forms in drawn)


@pytest.mark.parametrize('name', first_of({name: None for name in MADE}, *QUICK))
def test_its_cells_run_one_after_the_other(name: str, tmp_path: Path) -> None:
    def body() -> list[Any]:
        made = run_here(notebook_of(name), tmp_path)
        nbformat.validate(made)
        return json.loads(nbformat.writes(made))['cells']

    assert curves_are_seen(in_a_process(body))


@pytest.mark.parametrize('name', MADE)
def test_the_notebook_is_that_of_the_source_and_has_outputs(name: str) -> None:
    text = (FOLDER / f'{name}.ipynb').read_text(encoding='utf-8')
    nbformat.validate(nbformat.reads(text, as_version=4))
    made = json.loads(text)
    assert [(cell['cell_type'], ''.join(cell['source'])) for cell in made['cells']] == cells_of(name)
    outputs = [output for cell in made['cells'] for output in cell.get('outputs', [])]
    assert outputs and not [output for output in outputs if output['output_type'] == 'error']
    assert all(cell['execution_count'] for cell in made['cells'] if cell['cell_type'] == 'code')
    assert curves_are_seen(made['cells'])


def test_a_curve_that_is_not_seen_would_be_found() -> None:
    plotting = {'cell_type': 'code', 'source': 'frame.plot()', 'outputs': []}
    assert not curves_are_seen([plotting]) and not curves_are_seen([])


def test_the_readme_tells_of_each_and_of_what_the_others_are_about() -> None:
    linked = re.findall(r'^\| \[(\w+)\]\((\w+)\.ipynb\) \|', README, re.MULTILINE)
    assert sorted(linked) == [(name, name) for name in MADE]
    assert all(f'`{name}`' in README for name in INCUMBENTS)
    for target in re.findall(r'\]\(([^)#]+)\)', README):
        assert (FOLDER / target).exists(), target


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('name', ['text_dpo'])
def test_a_real_kernel_runs_it(name: str) -> None:
    outputs = [output for cell in run_by_kernel(notebook_of(name)).cells for output in cell.get('outputs', [])]
    assert any('image/png' in output.get('data', {}) for output in outputs)
