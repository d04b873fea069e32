"""Families with a file of their own. The file's name is the `model_type` of the configuration it serves.

Each file holds `MODEL`, the model class, and `SPEC`, the family's `FamilySpec`; where the model's body takes media in
another form than transformers' (videos of unequal length, say), also `BODY`, its class, and where checkpoints hold the
codec of what they write, `WRITES`, the kinds of these media. A false `WRITES_TEXT` says that they write nothing else,
and `READS` which kinds stand in prompts where these are not all that the processor takes. `SPACE` is a function of a
configuration that says what the model acts in, where no `action_space.json` does. A family that writes nothing
and scores by itself has a `HEAD`, made of its model, in place of a score head that is learnt. None is imported before a
checkpoint of its family is asked for. An Accustomed class adds methods to transformers' class, never state.

For a family whose class comes with the checkpoint, `MODEL` and `BODY` derive from no module: they are joined with the
class when it is loaded. `LOADING` holds settings of its configuration to load it with.

An installed package brings further families: an entry point of the group `align_anything.families` for each, its name
the `model_type`, its value such a module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.core.plugins import Plugins, registered_twice
from align_anything.core.types import MediaKind
from align_anything.models.family import FamilySpec


def _is_family(value: Any) -> bool:
    return inspect.ismodule(value) and {'MODEL', 'SPEC'} <= vars(value).keys()


def _fault(name: str, module: ModuleType) -> str:
    if not inspect.isclass(module.MODEL):
        return f'its MODEL is {module.MODEL!r}, but should be a class'
    if not (inspect.isclass(module.SPEC) and issubclass(module.SPEC, FamilySpec)):
        return f'its SPEC is {module.SPEC!r}, but should be a class derived from FamilySpec'
    return ''


_PLUGINS = Plugins(
    'family', 'align_anything.families', ModelError, 'a module that holds MODEL and SPEC', _is_family, _fault
)


def family_names() -> list[str]:
    """Returns the families with a file of their own, in this package or an installed one, sorted."""
    return sorted({*_filed(), *_plugins_by_file()})


def family_module(model_type: str) -> ModuleType | None:
    """Imports `models/families/<model_type>.py` or the module of an installed package, None for a family without.

    Raises `ModelError` when an installed package brings a family that has a file here or that another one brings, and
    when the family itself cannot be imported or used.
    """
    name = model_type.replace('-', '_')
    plugins = _plugins_by_file()
    if name in plugins:
        return _PLUGINS.load(plugins[name])
    return importlib.import_module(f'{__name__}.{name}') if name in _filed() else None


def accustomed_class(model_type: str) -> type | None:
    """Returns the family's own model class, or None when transformers' class serves."""
    module = family_module(model_type)
    return None if module is None else module.MODEL


def accustomed_body(model_type: str) -> type | None:
    """Returns the family's own class of the model's body, or None when transformers' class serves."""
    module = family_module(model_type)
    return None if module is None else vars(module).get('BODY')


def loading_options(model_type: str) -> dict[str, Any]:
    """Returns settings of the configuration that the family is loaded with."""
    module = family_module(model_type)
    return {} if module is None else dict(vars(module).get('LOADING', {}))


def own_codes(model_type: str) -> frozenset[MediaKind]:
    """Returns the kinds of media for which the family's checkpoints have codes and their codec."""
    module = family_module(model_type)
    return frozenset() if module is None else frozenset(vars(module).get('WRITES', ()))


def writes_text(model_type: str) -> bool:
    """Returns whether answers of the family may hold text."""
    module = family_module(model_type)
    return True if module is None else vars(module).get('WRITES_TEXT', True)


def own_reads(model_type: str) -> frozenset[MediaKind] | None:
    """Returns the kinds of media that the family reads where it says so; None for all that its processor takes."""
    module = family_module(model_type)
    found = None if module is None else vars(module).get('READS')
    return None if found is None else frozenset(found)


def own_space(config: Any) -> ActionSpace | None:
    """Returns the space that a configuration says its model acts in, None for one that says nothing of it."""
    module = family_module(config.model_type)
    found = None if module is None else vars(module).get('SPACE')
    return None if found is None else found(config)


def own_head(model_type: str) -> type | None:
    """Returns the class that scores with the family's own weights; None for models that get a head to learn."""
    module = family_module(model_type)
    return None if module is None else vars(module).get('HEAD')


def spec_for(
    config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, generation_config: Any = None
) -> FamilySpec:
    """Returns the FamilySpec of a checkpoint, the family's own or else the default. Raises as the spec does.

    `processor` is None for text families.
    """
    module = family_module(config.model_type)
    kind = FamilySpec if module is None else module.SPEC
    return kind(config, tokenizer, processor, max_length=max_length, generation_config=generation_config)


def _plugins_by_file() -> dict[str, str]:
    """Returns the entry points of installed packages by what their files would be called here."""
    found: dict[str, str] = {}
    filed = _filed()
    for name in _PLUGINS:
        file = name.replace('-', '_')
        if file in filed:
            raise ModelError(registered_twice('family', name, f'{__name__}.{file}', _PLUGINS.origin(name)))
        if file in found:
            raise ModelError(registered_twice('family', name, _PLUGINS.origin(found[file]), _PLUGINS.origin(name)))
        found[file] = name
    return found


def _filed() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}
