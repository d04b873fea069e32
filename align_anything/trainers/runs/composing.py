"""The checkpoint of a run that composes it: made once, before anything else is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from align_anything.configs.compose import read_compose
from align_anything.configs.resolve import Resolved
from align_anything.core.distributed import broadcast_object, is_main
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.store import digest
from align_anything.engines.process_group import join_process_group

logger = get_logger(__name__)


def with_composed(resolved: Resolved) -> Resolved:
    """Returns the same run on the checkpoint that `model_cfgs.compose` describes, if it does. Every rank calls it.

    It is written to `<output_dir>/composed-<digest>`, where later runs with the same settings find it. Dry runs write
    it too. Raises SettingsError on all ranks where `compose` raises.
    """
    cfgs = resolved.cfgs
    models = cfgs.model_cfgs
    if not models.compose:
        return resolved
    # Towers of every kind, which few runs compose.
    from align_anything.models.composed.compose import compose

    wanted = read_compose(models.compose, 'model_cfgs.compose')
    output_dir = writable_folder(Path(cfgs.logger_cfgs.output_dir), 'logger_cfgs.output_dir')
    folder = output_dir / f'composed-{digest(wanted.model_dump(mode="json"))[:8]}'
    made_once(folder, partial(compose, wanted), 'model_cfgs.compose')
    made = models.model_copy(update={'model_name_or_path': str(folder), 'compose': {}})
    return replace(resolved, cfgs=cfgs.model_copy(update={'model_cfgs': made}))


def made_once(folder: Path, make: Callable[[Path], object], setting: str) -> Path:
    """Returns a checkpoint that the first rank makes, unless an earlier run made it. Every rank calls it.

    Raises SettingsError, which names the `setting` that describes it, on all ranks where `make` raises.
    """
    if 'RANK' in os.environ:
        join_process_group()
    problem = None
    if is_main() and folder.exists():
        logger.info('%s: made already, from the parts as they were then; remove it to make it anew', folder)
    elif is_main():
        try:
            make(folder)
        except AlignAnythingError as error:
            problem = f'{setting}: {error}'
    problem = broadcast_object(problem)
    if problem is not None:
        raise SettingsError([problem])
    return folder
