"""`align-anything ui`: from options to a page that listens."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from align_anything.core.asgi import bound_socket, serve_app
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.serve.door import is_local, read_keys
from align_anything.serve.ui.page import Page
from align_anything.serve.ui.paths import Root

logger = get_logger(__name__)

PASSWORD_VARIABLE = 'ALIGN_ANYTHING_PASSWORD'
ANYWHERE = '0.0.0.0'
GRACE_SECONDS = 2


def serve_page(
    root: str | Path = '.',
    host: str = '127.0.0.1',
    port: int = 7860,
    *,
    share: bool = False,
    password_file: str | None = None,
    known: Sequence[str] = (),
) -> None:
    """Serves the page of a folder until Ctrl-C or SIGTERM; runs that it has started go on.

    Args:
        root: the folder that models, data and outputs lie in.
        host, port: where to listen.
        share: whether to open a public address for the page, through gradio's servers.
        password_file: file with a password, or several, that browsers must give; the environment variable
            ALIGN_ANYTHING_PASSWORD has another one.
        known: checkpoints of the hub that are offered.

    Raises SettingsError for a folder or an address that cannot be had, for a page that others could reach without a
    password, and where gradio is missing.
    """
    keys = read_keys(password_file, '--password_file', PASSWORD_VARIABLE)
    if not keys and (share or not is_local(host)):
        raise SettingsError(
            [
                'whoever reaches the page runs programs as you: give --password_file with --share, and with a --host '
                'that others reach.'
            ]
        )
    place = Root(root)
    os.chdir(place.folder)
    bound = bound_socket(host, port)
    page = Page(place, known)
    os.environ['GRADIO_TEMP_DIR'] = tempfile.mkdtemp(prefix='uploads-', dir=page.folder)
    try:
        from align_anything.serve.ui.app import make_app

        # By the name of a public address requests come from elsewhere.
        app = make_app(page, keys, ANYWHERE if share else host)
        shown = host if host != ANYWHERE else '127.0.0.1'
        logger.info('the page of %s is at http://%s:%d', place.folder, shown, bound.getsockname()[1])
        if share:
            logger.info('and for everyone with the password at %s', _public_address(bound.getsockname()[1]))
        # The library of settings takes seconds to import, which nobody has to wait for.
        threading.Thread(target=page.load_library, daemon=True).start()
        # Browsers hold a connection for as long as they show the page; that it is ended then is nothing to tell.
        logging.getLogger('uvicorn.error').addFilter(lambda record: 'graceful shutdown' not in str(record.msg))
        serve_app(app, bound, timeout_graceful_shutdown=GRACE_SECONDS)
    finally:
        bound.close()
        shutil.rmtree(page.folder, ignore_errors=True)


def _public_address(port: int) -> str:
    from gradio.networking import setup_tunnel

    return setup_tunnel('127.0.0.1', port, secrets.token_urlsafe(32), None, None)
