"""The tab on which a dataset is looked at through its template."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import gradio as gr

from align_anything.serve.ui.choices import modules_of_pairs
from align_anything.serve.ui.markup import log_html, problems_html
from align_anything.serve.ui.page import Page

READS = {
    'demonstrations (sft)': 'sft',
    'preferences (dpo)': 'dpo',
    'labelled answers (kto)': 'kto',
    'prompts (grpo)': 'grpo',
}
"""What is made of rows, by an algorithm that reads them so."""
ROWS = 50
PRIVATE = {'api_visibility': 'private', 'show_progress': 'hidden'}


def data_tab(page: Page, tab: gr.Tab) -> None:
    """Builds the tab."""
    pairs = modules_of_pairs()
    with gr.Row():
        pair = gr.Dropdown(
            sorted(pairs), value='text_to_text', label='Modality pair', elem_id='data_pair', interactive=True
        )
        reads = gr.Dropdown(
            list(READS), value=next(iter(READS)), label='Rows are', elem_id='data_reads', interactive=True
        )
        datasets = gr.Dropdown(
            page.found().data,
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label='Data',
            elem_id='data_datasets',
            interactive=True,
        )
        template = gr.Dropdown(
            [''], value='', allow_custom_value=True, label='Template', elem_id='data_template', interactive=True
        )
    with gr.Row():
        options = gr.Textbox(
            label='Options of the template',
            placeholder='{prompt: question, response: answer}',
            elem_id='data_options',
            interactive=True,
        )
        split = gr.Textbox(label='Split', placeholder='train', elem_id='data_split', interactive=True)
        first = gr.Number(1, label='First row', precision=0, minimum=1, elem_id='data_first', interactive=True)
        rows = gr.Number(
            ROWS, label='Rows', precision=0, minimum=1, maximum=1000, elem_id='data_rows', interactive=True
        )
    with gr.Row():
        look = gr.Button('Look', variant='primary', elem_id='look')
        following = gr.Button('Next rows', elem_id='look_next')
    output = gr.HTML(elem_id='data_output')

    def show(*given: Any) -> Iterator[str]:
        yield from look_at(page, *given)

    asked = [pair, reads, datasets, template, options, split, first, rows]
    running = {'api_visibility': 'private', 'show_progress': 'minimal'}
    look.click(show, asked, output, **running)
    moved = following.click(lambda at, number: at + number, [first, rows], first, **PRIVATE)
    moved.then(show, asked, output, **running)

    def templates(named: str) -> Any:
        page.load_library()
        from align_anything.serve.ui.train_tab import templates_for

        return gr.Dropdown(templates_for(READS[named]))

    gr.on([tab.select, reads.change], templates, reads, template, **PRIVATE)
    tab.select(lambda: gr.Dropdown(page.found().data), None, datasets, **PRIVATE)


def look_at(
    page: Page,
    pair: str,
    reads: str,
    datasets: list[str],
    template: str | None,
    options: str,
    split: str,
    first: int,
    rows: int,
) -> Iterator[str]:
    """Yields what there is to show of rows of datasets: at last a frame with them, or why there is none."""
    page.load_library()
    from align_anything.serve.ui.preview import outside
    from align_anything.serve.ui.runs import output_of

    if not datasets:
        yield problems_html(['name the data.'])
        return
    words = ['--train_datasets', *datasets]
    for name, text in (('template', template), ('template_kwargs', options), ('split', split)):
        words += [f'--train_{name}', text.strip()] if text and text.strip() else []
    problems = outside(words, page.root)
    if problems:
        yield problems_html(problems)
        return
    report = page.folder / 'rows.html'
    report.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'align_anything.serve.ui.look', pair, READS[reads], str(report)]
    said = ''
    for now in output_of([*command, str(first), str(rows), *words], page.root):
        said = now
        yield '<p class="note">reading …</p>'
    yield page.pages.frame(report) if report.is_file() else log_html(said)
