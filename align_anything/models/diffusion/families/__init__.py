"""Families of pipelines, one file each, which holds `SPEC`: its `DiffusionSpec`, that names its pipeline classes.

An installed package brings further families: an entry point of the group `align_anything.pipelines` for each, its name
the class of the pipeline, its value the class derived from `DiffusionSpec`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from align_anything.core.errors import ModelError
from align_anything.core.plugins import Plugins, registered_twice
from align_anything.core.registry import nearest
from align_anything.models.diffusion.spec import DiffusionSpec


def _is_spec(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, DiffusionSpec)


_PLUGINS = Plugins('pipeline', 'align_anything.pipelines', ModelError, 'a class derived from DiffusionSpec', _is_spec)


def pipeline_names() -> list[str]:
    """Returns the classes of pipelines that a family serves, of this package or an installed one, sorted."""
    return sorted({*_filed(), *_PLUGINS})


def spec_class(pipeline: str, folder: str) -> type[DiffusionSpec]:
    """Returns the family of a pipeline class. Raises ModelError, with the list, for one that no family serves."""
    filed = _filed()
    for name in _PLUGINS:
        if name in filed:
            raise ModelError(registered_twice('pipeline', name, filed[name].__module__, _PLUGINS.origin(name)))
    if pipeline in _PLUGINS:
        return _PLUGINS.load(pipeline)
    if pipeline not in filed:
        known = pipeline_names()
        raise ModelError(
            f"{folder} is a pipeline of class '{pipeline}', which no family serves.{nearest(pipeline, known)} What is "
            'missing is how its denoiser is called, what it is given of a prompt, and how its latents are scaled: a '
            f'file in align_anything/models/diffusion/families. Served are: {", ".join(known)}.'
        )
    return filed[pipeline]


@cache
def _filed() -> dict[str, type[DiffusionSpec]]:
    found: dict[str, type[DiffusionSpec]] = {}
    for module in pkgutil.iter_modules(__path__):
        spec = importlib.import_module(f'{__name__}.{module.name}').SPEC
        found |= dict.fromkeys(spec.pipelines, spec)
    return found
