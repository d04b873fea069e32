"""The page as one application: its tabs, the reports in its frames, and who may come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_anything.core.asgi import Application
from align_anything.serve.door import Door, Keys
from align_anything.serve.ui.page import Page
from align_anything.serve.ui.pages import ADDRESS, Walls
from align_anything.serve.ui.quick_gradio import import_gradio

TITLE = 'align-anything'
STYLE = Path(__file__).with_name('style.css')
FONTS = ('system-ui', 'sans-serif')
MONOSPACE = ('ui-monospace', 'monospace')
UPLOADS = '2gb'
"""The largest file that may be uploaded to show it to a model."""
NOT_FOUND = 404


def make_blocks(page: Page) -> Any:
    """Returns the page as gradio has it, a `gradio.Blocks`. Raises SettingsError where gradio is missing."""
    import_gradio()
    import gradio as gr

    from align_anything.serve.ui.chat_tab import chat_tab
    from align_anything.serve.ui.data_tab import data_tab
    from align_anything.serve.ui.runs_tab import runs_tab
    from align_anything.serve.ui.train_tab import train_tab

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        watched = gr.Dropdown([], value=None, label='Run', elem_id='run', interactive=True, render=False, scale=3)
        with gr.Tabs(selected='train') as tabs:
            with gr.Tab('Train', id='train'):
                train_tab(page, blocks, tabs, watched)
            with gr.Tab('Runs', id='runs'):
                runs_tab(page, blocks, watched)
            with gr.Tab('Chat', id='chat') as chat:
                chat_tab(page, chat, 1)
            with gr.Tab('Compare', id='compare') as compare:
                chat_tab(page, compare, 2)
            with gr.Tab('Data', id='data') as data:
                data_tab(page, data)
    return blocks


def make_app(page: Page, keys: Sequence[str] = (), host: str = '127.0.0.1') -> Application:
    """Returns the application that is served at `host`, behind a password where there are `keys`.

    Raises SettingsError where gradio is missing.
    """
    blocks = make_blocks(page)
    import gradio as gr
    from fastapi import FastAPI, Response
    from fastapi.responses import FileResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(f'{ADDRESS}/{{name}}')
    def report(name: str) -> Response:
        file = page.pages.find(name)
        return Response(status_code=NOT_FOUND) if file is None else FileResponse(file, media_type='text/html')

    theme = gr.themes.Default(font=list(map(gr.themes.Font, FONTS)), font_mono=list(map(gr.themes.Font, MONOSPACE)))
    theme.set(block_info_text_color='*neutral_600', block_info_text_color_dark='*neutral_300')
    gr.mount_gradio_app(
        app,
        blocks,
        path='/',
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=UPLOADS,
        allowed_paths=[str(page.folder)],
        theme=theme,
        css_paths=[STYLE],
    )
    return Walls(Door(app, Keys(keys), host, scheme=b'basic'))
