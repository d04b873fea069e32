"""What the folder that a run writes to may hold before it begins. Imports nothing heavy: pages and commands ask too."""

from __future__ import annotations

import socket
from pathlib import Path
from uuid import uuid4

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, barrier, broadcast_object, is_main
from align_anything.core.errors import SettingsError
from align_anything.reporting.metrics import METRICS_FILE

RESULTS = (METRICS_FILE, 'scores.jsonl', 'generations.jsonl')


def check_unused(cfgs: RunCfgs) -> None:
    """Raises SettingsError when the output folder holds what another run left, unless the settings allow for it."""
    if cfgs.train_cfgs.resume is not None or cfgs.logger_cfgs.overwrite_output_dir:
        return
    folder = Path(cfgs.logger_cfgs.output_dir)
    found = [path.name for path in sorted(folder.glob('slice_*')) if path.suffix != '.old']
    found += [name for name in RESULTS if (folder / name).is_file() and (folder / name).stat().st_size]
    if found:
        raise SettingsError(
            [
                f'logger_cfgs.output_dir: {folder} holds {", ".join(found)} of another run. Name another folder, go on '
                'with that run (--resume auto), or let this one replace it (--overwrite_output_dir).'
            ]
        )


def require_shared(folder: Path, setting: str, why: str) -> None:
    """Raises SettingsError, which says `why`, where nodes have a folder each instead of one. Every rank calls it."""
    mark = folder / broadcast_object(f'.shared.{uuid4().hex}')
    if is_main():
        mark.touch()
    barrier()
    seen = all_gather_object((mark.exists(), socket.gethostname()))
    if is_main():
        mark.unlink()
    blind = sorted({node for sees, node in seen if not sees})
    if blind:
        raise SettingsError(
            [
                f'{setting}: what the first of {len(seen)} processes writes into {folder} on {seen[0][1]} is not seen '
                f'by {len(seen) - sum(sees for sees, _ in seen)} of them, on {", ".join(blind)}. {why}: name a folder '
                'that all nodes share.'
            ]
        )
