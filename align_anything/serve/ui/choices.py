"""What there is to choose from: runs that can be started, and what lies in the folder of the page."""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

from align_anything import trainers
from align_anything.core.files import FINAL_NAME

NOT_PAIRS = ('loops', 'runs')
NOT_TRAINED = ('generate', 'rm_score')
DEPTH, FOLDERS, LISTED = 6, 5000, 300
CHECKPOINT_FILES = {'config.json', 'adapter_config.json', 'model_index.json', 'pytorch_lora_weights.safetensors'}
RUN_FILES = {'launch.json', 'settings.yaml', 'metrics.jsonl'}
SAVED_DATASET = {'dataset_info.json', 'state.json'}
CAPTIONED = {'metadata.jsonl', 'metadata.csv'}
DATA_SUFFIXES = ('.json', '.jsonl', '.csv', '.tsv', '.parquet', '.arrow')
SETTINGS_SUFFIXES = ('.yaml', '.yml')


def modules_of_pairs() -> dict[str, list[str]]:
    """Returns the algorithms that have a module in the package of a pair, by pair; imports none of them, nor torch.

    `trainers.leaves` knows those of installed packages too.
    """
    here = Path(trainers.__file__).parent
    algorithms = {module.name for module in pkgutil.iter_modules([str(here.parent / 'algorithms')])} - {*NOT_TRAINED}
    packages = [package.name for package in pkgutil.iter_modules([str(here)]) if package.ispkg]
    return {
        name: [module.name for module in pkgutil.iter_modules([str(here / name)]) if module.name in algorithms]
        for name in packages
        if name not in NOT_PAIRS
    }


@dataclass
class Found:
    """What lies in a folder, by paths relative to it.

    Attributes:
        checkpoints: models, adapters, and output folders of runs that have a trained model.
        data: files and folders that may hold rows.
        settings: YAML files.
        runs: output folders of runs, the one written to last first.
    """

    checkpoints: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def look_around(root: Path) -> Found:
    """Returns what lies in a folder, as deep as people go. Follows no symlinks, and looks into no hidden folders."""
    found, newest = Found(), {}
    for number, (name, folders, files) in enumerate(os.walk(root)):
        folder, names = Path(name), {*files}
        place = folder.relative_to(root).as_posix()
        visible = sorted(inner for inner in folders if not inner.startswith(('.', '__')))
        folders[:] = visible if len(folder.relative_to(root).parts) < DEPTH and number < FOLDERS else []
        slices = [inner for inner in visible if inner.startswith('slice_')]
        if names & CHECKPOINT_FILES:
            found.checkpoints.append(place)
            folders.clear()
        elif names & RUN_FILES or slices:
            if names & RUN_FILES:
                newest[place] = max((folder / own).stat().st_mtime for own in names & RUN_FILES)
            found.checkpoints += [place] if FINAL_NAME in slices else []
            folders[:] = slices
        elif SAVED_DATASET <= names or names & CAPTIONED:
            found.data.append(place)
            folders.clear()
        else:
            plain = [own for own in sorted(files) if not own.startswith('.')]
            beside = '' if place == '.' else f'{place}/'
            found.data += [f'{beside}{own}' for own in plain if own.removesuffix('.gz').endswith(DATA_SUFFIXES)]
            found.settings += [f'{beside}{own}' for own in plain if own.endswith(SETTINGS_SUFFIXES)]
    found.runs = sorted(newest, key=newest.__getitem__, reverse=True)[:LISTED]
    for listed in (found.checkpoints, found.data, found.settings):
        del listed[LISTED:]
    return found
