"""The checkpoint of a run that composes it: made once, before anything else is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from align_anything.configs.compose import read_compose
from align_anything.configs.resolve import Resolved
from align_anything.core.files import writable_folder
from align_anything.core.store import digest
from align_anything.models.composed.compose import compose


def with_composed(resolved: Resolved) -> Resolved:
    """Returns the same run on the checkpoint that `model_cfgs.compose` describes, if it does.

    It is written to `<output_dir>/composed-<digest>`, once for all ranks and for runs that resume. Raises as `compose`
    does.
    """
    cfgs = resolved.cfgs
    models = cfgs.model_cfgs
    if not models.compose:
        return resolved
    wanted = read_compose(models.compose, 'model_cfgs.compose')
    output_dir = writable_folder(Path(cfgs.logger_cfgs.output_dir), 'logger_cfgs.output_dir')
    folder = output_dir / f'composed-{digest(wanted.model_dump(mode="json"))[:8]}'
    # Ranks have no group yet, so they take turns at a file; whoever comes later finds the folder.
    with FileLock(f'{folder}.lock'):
        if not folder.exists():
            compose(wanted, folder, trust_remote_code=models.trust_remote_code)
    made = models.model_copy(update={'model_name_or_path': str(folder), 'compose': {}})
    return replace(resolved, cfgs=cfgs.model_copy(update={'model_cfgs': made}))
