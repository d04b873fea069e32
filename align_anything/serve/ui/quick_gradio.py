"""gradio, imported in half the time, without telling its makers and without a network."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from align_anything.core.errors import SettingsError

SILENT = {'GRADIO_ANALYTICS_ENABLED': 'False', 'HF_HUB_DISABLE_TELEMETRY': '1'}


def import_gradio() -> None:
    """Imports gradio where it is not imported yet. Raises SettingsError where it is missing."""
    if 'gradio' in sys.modules:
        return
    os.environ.update(SILENT)
    try:
        try:
            with _without_files_of('gradio'):
                importlib.import_module('gradio')
        except OSError:
            # A release that needs the files of its classes.
            for name in [name for name in sys.modules if name.partition('.')[0] == 'gradio']:
                del sys.modules[name]
            importlib.import_module('gradio')
    except ImportError as error:
        raise SettingsError(["the page needs the package gradio: pip install 'align-anything[ui]'."]) from error


@contextmanager
def _without_files_of(package: str) -> Iterator[None]:
    """Makes the classes of a package seem to come from no file.

    At each import gradio parses the files of its components, to write beside them for editors what they look like.
    """
    real = inspect.getfile

    def getfile(found: Any) -> str:
        if inspect.isclass(found) and found.__module__.partition('.')[0] == package:
            raise OSError(f'{found.__qualname__} need not be described')
        return real(found)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = real
