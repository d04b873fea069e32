"""diffusers, which is an extra: imported where a pipeline is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from align_anything.core.errors import ModelError


def require_diffusers() -> ModuleType:
    """Returns the module `diffusers`. Raises ModelError, which names the extra, where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f"models that denoise are pipelines of diffusers: pip install 'align-anything[diffusion]' ({error})."
        ) from error
    return diffusers


def require_beside(package: str, pipeline: str) -> None:
    """Raises ModelError, which names the extra, where what a pipeline imports without asking is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{pipeline} needs {package}: pip install 'align-anything[diffusion]'.")


def component_class(origin: Sequence[str], folder: Path) -> type[Any]:
    """Returns the class of a component as model_index.json names it, `[module, class]`.

    Raises ModelError for a module that is neither diffusers nor transformers, and a class that the module lacks.
    """
    diffusers = require_diffusers()
    library, name = origin
    # Networks that one pipeline has to itself are named after its module.
    of_pipeline = library.isidentifier() and importlib.util.find_spec(f'diffusers.pipelines.{library}') is not None
    if library not in ('diffusers', 'transformers') and not of_pipeline:
        raise ModelError(f"{folder} brings code of its own ('{library}'), which is not run.")
    module = importlib.import_module(library) if library == 'transformers' else diffusers
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ModelError(
            f"{folder}: this version of {library} ({module.__version__}) has no class '{name}'."
        ) from error


def pipeline_class(name: str, folder: Path) -> type[Any]:
    """Returns a pipeline class of diffusers. Raises ModelError where this version has none of that name."""
    return component_class(('diffusers', name), folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what diffusers and transformers print while they load or save: bars and advice, errors excepted."""
    import transformers

    logs = [require_diffusers().utils.logging, transformers.utils.logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
