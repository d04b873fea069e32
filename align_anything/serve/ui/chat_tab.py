"""The tabs on which one talks with a checkpoint, or with two that are asked the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.serve.ui.markup import problems_html
from align_anything.serve.ui.page import Page

if TYPE_CHECKING:
    from align_anything.serve.ui.chat import Session

LABELS = ('Model', 'Other model')
SAMPLED = ('temperature', 'top_p', 'max_new_tokens')
PRIVATE = {'api_visibility': 'private', 'show_progress': 'hidden'}


def chat_tab(page: Page, tab: gr.Tab, count: int) -> None:
    """Builds a tab for a conversation with `count` checkpoints."""
    name = 'chat' if count == 1 else 'compare'
    with gr.Row():
        models = [
            gr.Dropdown(
                page.checkpoints(),
                value=None,
                allow_custom_value=True,
                label=label,
                elem_id=f'{name}_model_{number}',
                interactive=True,
                info='Checkpoint, adapter, or output folder of a run; or a name of the hub.',
            )
            for number, label in enumerate(LABELS[:count], 1)
        ]
    with gr.Accordion('System prompt and sampling', open=False):
        system = gr.Textbox(label='System prompt', elem_id=f'{name}_system', interactive=True)
        with gr.Row():
            sampling = [
                gr.Textbox(label=key, placeholder='default', elem_id=f'{name}_{key}', interactive=True)
                for key in SAMPLED
            ]
        more = gr.Textbox(
            label='More settings',
            placeholder='--bf16 False --top_k 40',
            elem_id=f'{name}_more',
            interactive=True,
            info='As the command takes them: align-anything chat --help.',
        )
    problems = gr.HTML(elem_id=f'{name}_problems')
    with gr.Row():
        boxes = [
            gr.Chatbot(label=label, height='55vh', buttons=['copy'], elem_id=f'{name}_said_{number}')
            for number, label in enumerate(LABELS[:count], 1)
        ]
    message = gr.MultimodalTextbox(
        show_label=False,
        file_types=['image', 'audio', 'video'],
        file_count='multiple',
        elem_id=f'{name}_message',
        interactive=True,
        sources=['upload', 'microphone'],
        placeholder='A message, with images, audio and video if you like',
    )
    with gr.Row():
        stop = gr.Button('Stop', size='sm', elem_id=f'{name}_stop')
        retry = gr.Button('Retry', size='sm', elem_id=f'{name}_retry')
        reset = gr.Button('Reset', size='sm', elem_id=f'{name}_reset')
        unload = gr.Button('Unload models', size='sm', elem_id=f'{name}_unload')
    session = gr.State(None)
    asked = [session, system, more, *sampling, *models]
    shown = [session, problems, *boxes]

    def opened(current: Session | None, sources: Sequence[str], text: str, words: Sequence[str]) -> Any:
        talkers = page.models().talkers(sources, words)
        from align_anything.serve.ui.chat import Session, Talk

        if current is None:
            current = Session(Talk([talker.name for talker in talkers]), page.folder / 'media')
        current.talk.system = text or ''
        return current, talkers

    def answer(current: Session, talkers: Any) -> Iterator[tuple[Any, ...]]:
        yield current, '', *histories(current)
        for told in current.answer(talkers):
            yield current, problems_html(list(told.values())), *histories(current)

    def histories(current: Session | None) -> list[Any]:
        return [[] if current is None else current.history(number) for number in range(count)]

    def say(said: Any, current: Any, text: str, rest: str, *others: str) -> Iterator[tuple[Any, ...]]:
        settings, sources = others[: len(SAMPLED)], others[len(SAMPLED) :]
        yield gr.skip(), current, '<p class="note">opening …</p>', *histories(current)
        try:
            current, talkers = opened(current, [source or '' for source in sources], text, _words(settings, rest))
            current.ask(talkers, said['text'], said['files'])
        except AlignAnythingError as error:
            yield gr.skip(), current, _refused(error), *histories(current)
            return
        for item in answer(current, talkers):
            yield gr.MultimodalTextbox(value=None), *item

    def anew(current: Any, text: str, rest: str, *others: str) -> Iterator[tuple[Any, ...]]:
        settings, sources = others[: len(SAMPLED)], others[len(SAMPLED) :]
        try:
            current, talkers = opened(current, [source or '' for source in sources], text, _words(settings, rest))
            if not current.talk.take_back():
                raise SettingsError(['there is no answer to give anew.'])
        except AlignAnythingError as error:
            yield current, _refused(error), *histories(current)
            return
        yield from answer(current, talkers)

    def end(current: Any) -> None:
        if current is not None:
            current.stopping.set()

    def forget(current: Any) -> tuple[Any, ...]:
        if current is not None:
            current.stopping.set()
        return None, '', *([] for _ in range(count))

    def close() -> str:
        page.models().close()
        return '<p class="note">closed</p>'

    running = {'api_visibility': 'private', 'show_progress': 'hidden', 'concurrency_limit': 4}
    message.submit(say, [message, *asked], [message, *shown], **running)
    retry.click(anew, asked, shown, **running)
    stop.click(end, session, None, queue=False, **PRIVATE)
    reset.click(forget, session, shown, queue=False, **PRIVATE)
    unload.click(close, None, problems, **PRIVATE)

    def refreshed() -> Any:
        known = page.checkpoints()
        return [gr.Dropdown(known) for _ in models] if count > 1 else gr.Dropdown(known)

    tab.select(refreshed, None, models, **PRIVATE)


def _words(sampling: Sequence[str | None], more: str | None) -> list[str]:
    """The words of the settings that are given. Raises SettingsError for quotes that do not end."""
    given = zip(SAMPLED, sampling, strict=True)
    words = [word for name, text in given if text and text.strip() for word in (f'--{name}', text.strip())]
    try:
        return words + shlex.split(more or '')
    except ValueError as error:
        raise SettingsError([f'more settings: {error}.']) from error


def _refused(error: AlignAnythingError) -> str:
    return problems_html(error.problems if isinstance(error, SettingsError) else [str(error)])
