"""`python -m scripts.cookbooks [NAME …]` makes the notebooks of cookbooks/ of their sources, and runs them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / 'cookbooks'
SOURCES = FOLDER / 'sources'
TITLED = '# %% [markdown]'
CODE = '# %%'
SECONDS = 900
"""Most of one cell."""


class Cell(NamedTuple):
    """A cell of a notebook: `markdown` or `code`, and its text."""

    kind: str
    text: str


def names() -> list[str]:
    """Returns the names of all cookbooks."""
    return sorted(path.stem for path in SOURCES.glob('*.py'))


def cells_of(name: str) -> list[Cell]:
    """Returns the cells of a cookbook: those of its source, which lines `# %%` part."""
    cells: list[Cell] = []
    lines: list[str] = []
    kind = ''

    def end() -> None:
        text = '\n'.join(line.removeprefix('#').removeprefix(' ') if kind == 'markdown' else line for line in lines)
        if text.strip():
            cells.append(Cell(kind, text.strip()))

    for line in (SOURCES / f'{name}.py').read_text(encoding='utf-8').splitlines():
        if line in (TITLED, CODE):
            end()
            kind, lines = ('markdown' if line == TITLED else 'code'), []
        else:
            lines.append(line)
    end()
    return cells


def notebook_of(name: str) -> Any:
    """Returns a cookbook as a notebook without outputs."""
    import nbformat

    made = nbformat.v4.new_notebook()
    made.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    for number, cell in enumerate(cells_of(name)):
        new = nbformat.v4.new_markdown_cell if cell.kind == 'markdown' else nbformat.v4.new_code_cell
        # The same each time, so that a notebook changes where its source or its outputs do.
        made.cells.append(new(cell.text, id=f'{name}-{number}'))
    return made


def executed(notebook: Any) -> Any:
    """Runs a notebook in a kernel of its own and in a folder of its own, and returns it with what it printed and drew.

    What a run logs is left out. Raises nbclient's CellExecutionError when a cell fails.
    """
    import nbclient

    with tempfile.TemporaryDirectory() as folder:
        resources = {'metadata': {'path': folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name='python3', resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [output for output in cell.outputs if output.get('name') != 'stderr']
            cell.metadata.pop('execution', None)
    notebook.metadata.pop('widgets', None)
    # The versions of Python and of its kernel are those of whoever made it.
    notebook.metadata['language_info'] = {'name': 'python'}
    return notebook


def main(argv: list[str]) -> None:
    """Writes the notebooks of these names, all without any."""
    import nbformat

    parser = argparse.ArgumentParser(prog='python -m scripts.cookbooks', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'one of {", ".join(names())}')
    chosen = parser.parse_args(argv).names
    unknown = sorted({*chosen} - {*names()})
    if unknown:
        parser.error(f'there is no cookbook {unknown[0]}')
    for name in chosen or names():
        nbformat.write(executed(notebook_of(name)), FOLDER / f'{name}.ipynb')
        sys.stdout.write(f'{FOLDER.name}/{name}.ipynb\n')


if __name__ == '__main__':
    main(sys.argv[1:])
