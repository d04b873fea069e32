"""The tab on which a run is put together, looked at and started."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.serve.ui.choices import modules_of_pairs
from align_anything.serve.ui.markup import good_html, log_html, problems_html, verdict_html
from align_anything.serve.ui.page import Page

if TYPE_CHECKING:
    from align_anything.serve.ui.form import Field
    from align_anything.serve.ui.preview import Asked

FIRST_PAIR, FIRST_ALGORITHM = 'text_to_text', 'sft'
CHOSEN = {
    'model': 'model_cfgs.model_name_or_path',
    'datasets': 'data_cfgs.train_datasets',
    'template': 'data_cfgs.train_template',
    'output_dir': 'logger_cfgs.output_dir',
}
"""Settings above the form, by what they are called here."""
TASKS = {
    'supervised': 'format_supervised_sample',
    'preference': 'format_preference_sample',
    'unpaired': 'format_supervised_sample',
    'prompt': 'format_prompt_only_sample',
}
"""The hook that a template must have, by what an algorithm reads of a row."""
RUNNABLE = 'These settings can be run.'
PRIVATE = {'api_visibility': 'private', 'show_progress': 'hidden'}


def train_tab(page: Page, blocks: gr.Blocks, tabs: gr.Tabs, watched: gr.Dropdown) -> None:
    """Builds the tab. A run that is started is shown on the tab `runs` of `tabs`, chosen in `watched`."""
    pairs = modules_of_pairs()
    found = page.found()
    with gr.Row():
        pair = gr.Dropdown(
            sorted(pairs),
            value=FIRST_PAIR,
            interactive=True,
            elem_id='pair',
            label='Modality pair',
            info='What is read and written.',
        )
        algorithm = gr.Dropdown(
            pairs[FIRST_PAIR],
            value=FIRST_ALGORITHM,
            interactive=True,
            elem_id='algorithm',
            label='Algorithm',
            info='How it learns.',
        )
        devices = gr.Textbox(
            label='Devices',
            elem_id='devices',
            interactive=True,
            placeholder='all',
            info='How many of this machine; empty for all.',
        )
        config = gr.Dropdown(
            ['', *found.settings],
            value='',
            label='Settings file',
            elem_id='config',
            interactive=True,
            info='YAML under what is set here.',
        )
    with gr.Row():
        model = gr.Dropdown(
            page.checkpoints(),
            value=None,
            allow_custom_value=True,
            label='Model',
            elem_id='model',
            interactive=True,
            info='Checkpoint: a folder, or a name of the hub.',
        )
        datasets = gr.Dropdown(
            found.data,
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label='Data',
            elem_id='datasets',
            interactive=True,
            info='Files, folders, or names of the hub.',
        )
        template = gr.Dropdown(
            [],
            value=None,
            allow_custom_value=True,
            label='Template',
            elem_id='template',
            interactive=True,
            info='What makes conversations of rows; also file.py:Name.',
        )
        output_dir = gr.Textbox(
            'output/run', label='Output folder', elem_id='output_dir', interactive=True, info='Of the run.'
        )
    # What is given stays when the pair or the algorithm is another one.
    kept = gr.State({})
    chosen = {'model': model, 'datasets': datasets, 'template': template, 'output_dir': output_dir}
    with gr.Row():
        form = gr.Column(scale=3)
        with gr.Column(scale=2, elem_classes='panel'):
            with gr.Row():
                memory = gr.Textbox(
                    label='GiB of a device', placeholder='of this machine', elem_id='memory', interactive=True, scale=1
                )
                rows = gr.Textbox('100', label='Rows to inspect', elem_id='rows', interactive=True, scale=1)
            with gr.Row():
                dry_run = gr.Button('Dry run', elem_id='dry_run')
                inspect = gr.Button('Inspect', elem_id='inspect')
                start = gr.Button('Start', variant='primary', elem_id='start')
            problems = gr.HTML(elem_id='problems')
            output = gr.HTML(elem_id='output')
            command = gr.Code(
                label='Command',
                language='shell',
                interactive=False,
                buttons=['copy'],
                lines=3,
                wrap_lines=True,
                elem_id='command',
                show_line_numbers=False,
                visible=False,
            )
            yaml = gr.Code(
                label='Settings',
                language='yaml',
                interactive=False,
                buttons=['copy', 'download'],
                lines=3,
                elem_id='yaml',
                show_line_numbers=False,
                visible=False,
            )

    def algorithms(pair_name: str, current: str) -> Any:
        page.load_library()
        known = _trained(pair_name)
        return gr.Dropdown(known, value=current if current in known else known[0])

    pair.change(algorithms, [pair, algorithm], algorithm, **PRIVATE)

    with form:

        @gr.render(
            inputs=[pair, algorithm, kept],
            triggers=[pair.change, algorithm.change, blocks.load],
            show_progress='minimal',
        )
        def settings(pair_name: str, algorithm_name: str, values: Mapping[str, Any]) -> None:
            page.load_library()
            from align_anything.serve.ui.form import fields_of, sections_of
            from align_anything.trainers.leaves import find_run

            if algorithm_name not in _trained(pair_name):
                gr.HTML(problems_html([f'{pair_name} has no {algorithm_name}.']))
                return
            its_pair, kind = find_run(pair_name, algorithm_name)
            fields = fields_of(its_pair, kind)
            parts: dict[str, Any] = {}
            for number, section in enumerate(sections_of(kind, fields)):
                with gr.Accordion(section.title, open=number == 0):
                    gr.Markdown(section.meaning, elem_classes='note')
                    with gr.Row(elem_classes='fields'):
                        for field in section.fields:
                            parts[field.setting.path] = _component(field, values.get(field.setting.path))
            _listen(parts, fields)

    def _listen(parts: Mapping[str, Any], fields: list[Field]) -> None:
        own = {'pair': pair, 'algorithm': algorithm, 'devices': devices, 'config': config, **chosen}
        inputs = {*parts.values(), *own.values(), memory, rows, kept}

        def asked(values: Mapping[Any, Any]) -> Asked:
            above = {CHOSEN[name]: values[part] for name, part in chosen.items()}
            below = {path: values[part] for path, part in parts.items()}
            plain = {name: values[part] for name, part in own.items()}
            return asked_for_in(plain, {**below, **above}, fields)

        def show(values: Mapping[Any, Any]) -> tuple[Any, ...]:
            from align_anything.serve.ui.preview import preview, shell

            now = said_of(fields, {path: values[part] for path, part in parts.items()}, values[kept])
            try:
                made = preview(asked(values), page.root)
            except SettingsError as error:
                return now, problems_html(error.problems), gr.Code(visible=False), gr.Code(visible=False)
            told = problems_html(made.problems, made.notes)
            typed = gr.Code(shell(made.command), visible=True)
            return now, told or good_html(RUNNABLE), typed, gr.Code(made.yaml, visible=bool(made.yaml))

        def try_out(values: Mapping[Any, Any]) -> Iterator[str]:
            from align_anything.serve.ui.preview import resolve_in
            from align_anything.serve.ui.runs import output_of

            try:
                wanted = asked(values)
                size = _size(values[memory])
                resolve_in(wanted, page.root)
            except AlignAnythingError as error:
                yield _refused(error)
                return
            for said in output_of([*wanted.command, '--dry_run', *size], page.root):
                yield verdict_html(said) + log_html(said)

        def look(values: Mapping[Any, Any]) -> Iterator[str]:
            from align_anything.serve.ui.preview import resolve_in
            from align_anything.serve.ui.runs import output_of

            report = page.folder / 'inspect.html'
            report.unlink(missing_ok=True)
            try:
                wanted = asked(values)
                number = _number(values[rows], 'rows to inspect')
                resolve_in(wanted, page.root)
            except AlignAnythingError as error:
                yield _refused(error)
                return
            words = [sys.executable, '-m', 'align_anything.cli', 'inspect', wanted.pair, wanted.algorithm]
            words += [*wanted.settings, '--report', str(report), *([] if number is None else ['--rows', str(number)])]
            for said in output_of(words, page.root):
                yield log_html(said)
            if report.is_file():
                yield page.pages.frame(report)

        def begin(values: Mapping[Any, Any]) -> tuple[Any, ...]:
            from align_anything.serve.ui.runs import start as start_run

            try:
                folder = page.root.short(start_run(asked(values), page.root))
            except AlignAnythingError as error:
                return _refused(error), gr.skip(), gr.skip()
            runs = [folder, *(run for run in page.found().runs if run != folder)]
            return good_html(f'{folder} has been started.'), gr.Tabs(selected='runs'), gr.Dropdown(runs, value=folder)

        given = [*parts.values(), devices, config, *chosen.values()]
        changes = [part.blur if isinstance(part, gr.Textbox) else part.change for part in given]
        texts = [part.submit for part in given if isinstance(part, gr.Textbox)]
        gr.on(
            [*changes, *texts],
            show,
            inputs,
            [kept, problems, command, yaml],
            trigger_mode='always_last',
            queue=False,
            **PRIVATE,
        )
        dry_run.click(try_out, inputs, output, api_visibility='private', show_progress='minimal')
        inspect.click(look, inputs, output, api_visibility='private', show_progress='minimal')
        start.click(begin, inputs, [output, tabs, watched], api_visibility='private')

    def templates(algorithm_name: str) -> Any:
        page.load_library()
        return gr.Dropdown(templates_for(algorithm_name))

    gr.on([algorithm.change, blocks.load], templates, algorithm, template, **PRIVATE)
    tabs.change(lambda: _refreshed(page), None, [model, datasets, config], **PRIVATE)


def asked_for_in(plain: Mapping[str, Any], values: Mapping[str, Any], fields: list[Field]) -> Asked:
    """Returns what the tab asks for. Raises SettingsError for a number of devices that is none."""
    from align_anything.serve.ui.form import words_of
    from align_anything.serve.ui.preview import Asked

    words = ['--config', plain['config']] if plain['config'] else []
    words += words_of(fields, values)
    return Asked(plain['pair'], plain['algorithm'], words, _number(plain['devices'], 'devices'))


def templates_for(algorithm: str) -> list[str]:
    """Returns the names of the templates that have what an algorithm reads."""
    from align_anything.algorithms.base import find_algorithm
    from align_anything.datasets.formatters.base import templates_with

    hook = TASKS.get(find_algorithm(algorithm).task, 'format_preference_sample')
    return ['', *templates_with(hook)]


def _trained(pair: str) -> list[str]:
    """The algorithms of a pair that train."""
    from align_anything.algorithms.base import find_algorithm
    from align_anything.trainers.leaves import runs

    return [name for name in runs()[pair] if find_algorithm(name).trains]


def said_of(fields: Sequence[Field], values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that say something, by `group.key`, and those `before` of settings without a field here."""
    from align_anything.serve.ui.form import words_of

    said = {field.setting.path: values.get(field.setting.path) for field in fields}
    kept = {field.setting.path for field in fields if words_of([field], said)}
    others = {path: value for path, value in before.items() if path not in said}
    return others | {path: said[path] for path in kept}


def _component(field: Field, value: Any) -> Any:
    told = {
        'label': field.name,
        'info': field.info,
        'elem_id': field.setting.path,
        'interactive': True,
    }
    if field.kind == 'flag':
        return gr.Checkbox(field.setting.value if value is None else value, **told)
    if field.kind == 'choice':
        return gr.Dropdown(list(field.choices), value=value or field.default, **told)
    return gr.Textbox(value, placeholder=field.default, lines=1, max_lines=8, **told)


def _refreshed(page: Page) -> tuple[Any, ...]:
    found = page.found()
    return (
        gr.Dropdown([*found.checkpoints, *page.known]),
        gr.Dropdown(found.data),
        gr.Dropdown(['', *found.settings]),
    )


def _number(text: str | None, what: str) -> int | None:
    if not text or not text.strip():
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise SettingsError([f'{what}: {text} is no number from 1 on.'])
    return int(text)


def _size(text: str | None) -> list[str]:
    given = (text or '').strip().lower().removesuffix('gib').strip()
    if not given:
        return []
    try:
        size = float(given)
    except ValueError:
        size = 0.0
    if not size > 0 or size == float('inf'):
        raise SettingsError([f'GiB of a device: {text} is no size.'])
    return [f'{size:g}GiB']


def _refused(error: AlignAnythingError) -> str:
    return problems_html(error.problems if isinstance(error, SettingsError) else [str(error)])
