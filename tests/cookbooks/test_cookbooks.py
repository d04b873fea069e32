"""Every cookbook runs, and its notebook is that of its source, with outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.cookbooks import FOLDER, cells_of, names, notebook_of, run_by_kernel, run_here
from tests.harness.notebooks import in_a_process
from tests.harness.pairwise import first_of

MADE = names()
QUICK = ('text_dpo',)
"""Those that `make test` runs; all are run by `make extended`."""


@pytest.mark.parametrize('name', first_of({name: None for name in MADE}, *QUICK))
def test_its_cells_run_one_after_the_other(name: str, tmp_path: Path) -> None:
    def body() -> list[str]:
        cells = run_here(notebook_of(name), tmp_path).cells
        return [kind for cell in cells for output in cell.get('outputs', []) for kind in output.get('data', {})]

    assert 'text/plain' in in_a_process(body)


@pytest.mark.parametrize('name', MADE)
def test_the_notebook_is_that_of_the_source_and_has_outputs(name: str) -> None:
    made = json.loads((FOLDER / f'{name}.ipynb').read_text(encoding='utf-8'))
    assert [(cell['cell_type'], ''.join(cell['source'])) for cell in made['cells']] == cells_of(name)
    outputs = [output for cell in made['cells'] for output in cell.get('outputs', [])]
    assert outputs and not [output for output in outputs if output['output_type'] == 'error']
    assert all(cell['execution_count'] for cell in made['cells'] if cell['cell_type'] == 'code')


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('name', ['text_dpo'])
def test_a_real_kernel_runs_it(name: str) -> None:
    outputs = [output for cell in run_by_kernel(notebook_of(name)).cells for output in cell.get('outputs', [])]
    assert any('image/png' in output.get('data', {}) for output in outputs)
