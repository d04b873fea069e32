"""`python -m scripts.cookbooks [NAME …]` makes the notebooks of cookbooks/ of their sources, and runs them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / 'cookbooks'
SOURCES = FOLDER / 'sources'
TITLED = '# %% [markdown]'
CODE = '# %%'
SECONDS = 900
"""Most of one cell."""
INLINE = 'module://matplotlib_inline.backend_inline'


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
    made.metadata['language_info'] = {'name': 'python'}
    for number, cell in enumerate(cells_of(name)):
        new = nbformat.v4.new_markdown_cell if cell.kind == 'markdown' else nbformat.v4.new_code_cell
        # The same each time, so that a notebook changes where its source or its outputs do.
        made.cells.append(new(cell.text, id=f'{name}-{number}'))
    return made


def run_by_kernel(notebook: Any) -> Any:
    """Runs a notebook in a kernel and a folder of its own, and returns it with its outputs, but for what a run logs.

    Raises nbclient's CellExecutionError when a cell fails.
    """
    import nbclient

    with tempfile.TemporaryDirectory() as folder:
        resources = {'metadata': {'path': folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name='python3', resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [output for output in cell.outputs if output.get('name') != 'stderr']
    return notebook


def run_here(notebook: Any, folder: Path) -> Any:
    """Runs a notebook in this process and in `folder`, with the same outputs. Raises what a cell raises."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.pylabtools import activate_matplotlib
    from IPython.utils.capture import capture_output
    from matplotlib_inline.backend_inline import configure_inline_support
    from nbformat import v4

    shell = InteractiveShell.instance()
    activate_matplotlib(INLINE)
    # Shows the curves of a cell at its end; without a kernel nobody else asks for it.
    configure_inline_support(shell, INLINE)
    os.chdir(folder)
    results: list[tuple[Any, Any]] = []
    shell.displayhook.write_output_prompt = lambda: None
    shell.displayhook.write_format_data = lambda data, metadata=None: results.append((data, metadata))
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == 'code'), 1):
        results.clear()
        with capture_output(stderr=False) as said:
            shell.run_cell(cell.source, store_history=True).raise_error()
        cell.execution_count = number
        printed = [v4.new_output('stream', name='stdout', text=said.stdout)] if said.stdout else []
        shown = [v4.new_output('display_data', data=_written(item.data)) for item in said.outputs]
        made = [v4.new_output('execute_result', data=_written(data), execution_count=number) for data, _ in results]
        cell.outputs = [*printed, *made, *shown]
    return notebook


def _written(data: Mapping[str, Any]) -> dict[str, Any]:
    """The forms of an output as a notebook holds them: pictures as PNG, in base64."""
    kept = {kind: value for kind, value in data.items() if kind != 'image/jpeg'}
    return {kind: b64encode(value).decode() if type(value) is bytes else value for kind, value in kept.items()}


def make(name: str) -> float:
    """Runs a cookbook in a forked process and writes its notebook. Returns the seconds of processor time that it took.

    Raises RuntimeError when a cell of it fails.
    """
    import nbformat

    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with tempfile.TemporaryDirectory() as folder:
                made = run_here(notebook_of(name), Path(folder))
            nbformat.validate(made)
            nbformat.write(made, FOLDER / f'{name}.ipynb')
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Leaving by the way in would do the rest of the caller's work twice.
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    if status:
        raise RuntimeError(f'the cookbook {name} failed')
    return used.ru_utime + used.ru_stime


def import_all() -> None:
    """Imports, once and before forking, what every cookbook imports."""
    import datasets
    import deepspeed
    import diffusers
    import matplotlib.pyplot
    import pandas
    import peft

    import align_anything.api.policy
    import align_anything.trainers.runs.offline
    import align_anything.trainers.runs.online

    assert all((align_anything, datasets, deepspeed, diffusers, matplotlib, pandas, peft))


def main(argv: list[str]) -> None:
    """Writes the notebooks of these names, all without any."""
    parser = argparse.ArgumentParser(prog='python -m scripts.cookbooks', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'one of {", ".join(names())}')
    chosen = parser.parse_args(argv).names
    unknown = sorted({*chosen} - {*names()})
    if unknown:
        parser.error(f'there is no cookbook {unknown[0]}')
    import_all()
    for name in chosen or names():
        seconds = make(name)
        sys.stdout.write(f'{FOLDER.name}/{name}.ipynb: {seconds:.0f} s of processor time\n')


if __name__ == '__main__':
    main(sys.argv[1:])
