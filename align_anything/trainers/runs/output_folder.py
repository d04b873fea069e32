"""What the folder that a run writes to may hold before it begins. Imports nothing heavy: pages and commands ask too."""

from __future__ import annotations

from pathlib import Path

from align_anything.configs.schema import RunCfgs
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
