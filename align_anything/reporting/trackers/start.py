"""The tracker that the settings name: whether it can be had, and its start."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_anything.core.errors import SettingsError
from align_anything.reporting.trackers.base import Tracker
from align_anything.reporting.trackers.clearml import ClearMLTracker
from align_anything.reporting.trackers.mlflow import MLflowTracker
from align_anything.reporting.trackers.swanlab import SwanLabTracker
from align_anything.reporting.trackers.tensorboard import TensorBoardTracker
from align_anything.reporting.trackers.wandb import WandbTracker

# By the name of the setting, which is also that of the package, and of the extra of this one that brings it.
MAKERS: dict[str, Callable[[Path, str, str, dict[str, Any], int | None], Tracker]] = {
    'tensorboard': TensorBoardTracker,
    'wandb': WandbTracker,
    'clearml': ClearMLTracker,
    'mlflow': MLflowTracker,
    'swanlab': SwanLabTracker,
}


def check_tracker(log_type: str) -> None:
    """Raises SettingsError when `log_type` is unknown or its package is missing; call it before a model loads."""
    if log_type == 'none':
        return
    if log_type not in MAKERS:
        known = ', '.join([*MAKERS, 'none'])
        raise SettingsError([f"logger_cfgs.log_type is '{log_type}', which is none of: {known}."])
    if importlib.util.find_spec(log_type) is None:
        extra = '' if log_type == 'tensorboard' else f'[{log_type}]'
        raise SettingsError(
            [
                f"logger_cfgs.log_type is '{log_type}', but the package of that name is not installed. "
                f"Install it with: pip install 'align-anything{extra}', or choose another log_type "
                '(metrics.jsonl is written in any case).'
            ]
        )


def make_tracker(
    log_type: str,
    *,
    output_dir: Path,
    project: str,
    run_name: str,
    settings: dict[str, Any],
    resume_step: int | None,
) -> Tracker | None:
    """Starts the tracker; None for `none`. Raises SettingsError when it is missing or refuses to start."""
    check_tracker(log_type)
    if log_type == 'none':
        return None
    return MAKERS[log_type](output_dir, project, run_name, settings, resume_step)
