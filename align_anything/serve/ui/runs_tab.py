"""The tab on which runs are watched, stopped and taken up."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import gradio as gr

from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.serve.ui.markup import facts_html, good_html, log_html, problems_html, table_html
from align_anything.serve.ui.page import Page

SECONDS = 2.0
REPORTS = ('completions.html', 'previews.html')
NO_REPORTS = 'None yet: online runs show responses, and runs of pipelines previews where preview_prompts are given.'
LOG_LINES = 400
PRIVATE = {'api_visibility': 'private', 'show_progress': 'hidden'}


def runs_tab(page: Page, blocks: gr.Blocks, watched: gr.Dropdown) -> None:
    """Builds the tab; `watched` is the run to show."""
    with gr.Row():
        watched.render()
        refresh = gr.Button('Refresh', scale=0, elem_id='refresh_runs')
        stop = gr.Button('Stop', variant='stop', scale=0, elem_id='stop')
        resume = gr.Button('Resume', scale=0, elem_id='resume')
    message = gr.HTML(elem_id='run_message')
    facts = gr.HTML(elem_id='run_facts')
    curves = gr.HTML(elem_id='run_curves')
    with gr.Accordion('Responses and previews', open=True):
        report = gr.HTML(elem_id='run_report')
    with gr.Accordion('Log', open=True):
        log = gr.HTML(elem_id='run_log')
    with gr.Accordion('All runs in this folder', open=False):
        overview = gr.HTML(elem_id='all_runs')
    known = gr.State(None)
    shown = [facts, curves, report, log, known]

    def tick(name: str | None, before: Any) -> tuple[Any, ...]:
        return watch(page, name, before)

    timer = gr.Timer(SECONDS)
    timer.tick(tick, [watched, known], shown, queue=False, trigger_mode='once', **PRIVATE)
    watched.change(lambda name: watch(page, name, None), watched, shown, queue=False, **PRIVATE)
    watched.change(lambda: '', None, message, queue=False, **PRIVATE)

    def list_runs(name: str | None) -> tuple[Any, str]:
        runs = page.found().runs
        return gr.Dropdown(runs, value=name if name in runs else next(iter(runs), None)), table_html(
            overview_of(page, runs)
        )

    gr.on([refresh.click, blocks.load], list_runs, watched, [watched, overview], **PRIVATE)

    def end(name: str | None) -> str:
        from align_anything.serve.ui import runs

        try:
            asked = runs.stop(page.root.inside(_named(name), 'run'))
        except AlignAnythingError as error:
            return problems_html([str(error)])
        if asked:
            return good_html('It finishes the step under way, saves a checkpoint and ends.')
        return problems_html(['Nothing of it runs here.'])

    def again(name: str | None) -> str:
        from align_anything.serve.ui import runs

        try:
            runs.resume(page.root.inside(_named(name), 'run'), page.root)
        except AlignAnythingError as error:
            return problems_html(error.problems if isinstance(error, SettingsError) else [str(error)])
        return good_html('It goes on from its newest checkpoint.')

    stop.click(end, watched, message, api_visibility='private')
    resume.click(again, watched, message, api_visibility='private')


def watch(page: Page, name: str | None, before: Any) -> tuple[Any, ...]:
    """Returns what is shown of a run: facts, curves, its report, its log; and what they were made of.

    What is made of the same as `before` is left as it is.
    """
    if not name:
        return '', '', '', '', None
    try:
        folder = page.root.inside(name, 'run')
    except SettingsError as error:
        return problems_html(error.problems), '', '', '', None
    from align_anything.serve.ui import runs

    state = runs.state_of(folder)
    parts = {
        'facts': (state, *_stamps(folder, runs.LAUNCH, 'metrics.jsonl', runs.LOG)),
        'curves': _stamps(folder, 'metrics.jsonl', 'timings.jsonl'),
        'report': _stamps(folder, *REPORTS),
        'log': _stamps(folder, runs.LOG),
    }
    now = {'name': name, **parts}
    if now == before:
        return (gr.skip(),) * 5
    same = {key for key in now if before is not None and before['name'] == name and before[key] == now[key]}

    def made(key: str, make: Any) -> Any:
        return gr.skip() if key in same else make()

    from align_anything.serve.ui.curves import curves_html

    return (
        made('facts', lambda: facts_html(facts_of(page, folder, state)) + _why(folder, state)),
        made('curves', lambda: curves_html(folder)),
        made('report', lambda: _reports(page, folder)),
        made('log', lambda: log_html('\n'.join(runs.tail_of(folder).splitlines()[-LOG_LINES:]))),
        now,
    )


def facts_of(page: Page, folder: Path, state: str) -> dict[str, str]:
    """Returns what there is to know of a run in a few lines."""
    from align_anything.reporting.metrics import METRICS_FILE, read_metrics
    from align_anything.serve.ui.runs import read_launch

    launch, records = read_launch(folder), read_metrics(folder / METRICS_FILE)
    last = {key: value for record in records for key, value in record.items()}
    told = ('train/loss', 'train/reward', 'eval/loss', 'train/epoch')
    numbers = ', '.join(f'{key} {float(last[key]):.4g}' for key in told if key in last)
    facts = {'state': state, 'last step': f'{last["step"]}: {numbers}' if last else 'none yet'}
    checkpoints = sorted((path.name for path in folder.glob('slice_*') if path.is_dir()), key=len)
    facts['checkpoints'] = ', '.join(checkpoints) or 'none'
    facts['folder'] = page.root.short(folder)
    if launch is not None:
        facts |= {'run': f'{launch.pair} {launch.algorithm}', 'command': shlex.join(launch.command)}
    return facts


def overview_of(page: Page, names: list[str]) -> list[dict[str, str]]:
    """Returns a line for each run."""
    page.load_library()
    from align_anything.serve.ui.runs import read_launch, state_of

    lines = []
    for name in names:
        folder = page.root.folder / name
        launch = read_launch(folder)
        run = '' if launch is None else f'{launch.pair} {launch.algorithm}'
        lines.append({'folder': name, 'run': run, 'state': state_of(folder)})
    return lines


def _why(folder: Path, state: str) -> str:
    from align_anything.serve.ui.runs import FAILED, last_words

    return problems_html(last_words(folder).splitlines()) if state == FAILED else ''


def _reports(page: Page, folder: Path) -> str:
    frames = [page.pages.frame(folder / name, '60vh') for name in REPORTS if (folder / name).is_file()]
    return ''.join(frames) or f'<p class="note">{NO_REPORTS}</p>'


def _stamps(folder: Path, *names: str) -> tuple[Any, ...]:
    found = []
    for name in names:
        file = folder / name
        if file.is_file():
            stat = file.stat()
            found.append((name, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _named(name: str | None) -> str:
    if not name:
        raise SettingsError(['choose a run.'])
    return name
