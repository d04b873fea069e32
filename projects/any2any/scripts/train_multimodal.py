"""Trains what a YAML file of Any2Any Trainer asks for.

python scripts/train_multimodal.py configs/sft/simple_hf_training.yaml [--dry-run] [--SETTING VALUE ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from checkpoint import add_checkpoint
from launcher import launched
from mapping import ALGORITHM, Run, read_file
from rows import add_data

from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.distributed import is_main
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import atomic_write_text, writable_folder
from align_anything.core.logging import get_logger
from align_anything.trainers.launch import USER_ERROR, leaf

SETTINGS_FILE = 'align_anything.yaml'
logger = get_logger('any2any')


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the file, writes it anew as settings of align-anything, and starts the trainer that they are for.

    Further arguments are settings of align-anything, over those of the file. Ends as its trainers do: with code 2 where
    something is the user's to mend.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        if not given or given[0].startswith('--'):
            raise SettingsError(['command line: the YAML file comes first, as in train_multimodal.py FILE --dry-run.'])
        run = prepared(Path(given[0]), os.environ)
        for note in run.notes:
            if is_main():
                logger.info(note)
        path = written(run)
    except AlignAnythingError as error:
        if is_main():
            logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)
    leaf(run.pair, ALGORITHM)(['--config', str(path), *given[1:]])


def prepared(path: Path, environ: Mapping[str, str]) -> Run:
    """Returns the run of a file with all that its data, its checkpoint and its launcher add."""
    run = read_file(path)
    settings, notes = launched(environ)
    for key, value in settings.items():
        run.put(f'train_cfgs.{key}', value, 'accelerate launch')
    run.notes += notes
    if run.problems:
        raise SettingsError(run.problems)
    add_data(run)
    add_checkpoint(run)
    return run


def written(run: Run) -> Path:
    """Writes the settings into the output folder, from where `deepspeed --module` takes them too."""
    folder = writable_folder(run.settings['logger_cfgs.output_dir'], 'output_dir')
    # Every rank writes the same.
    atomic_write_text(folder / SETTINGS_FILE, dump_yaml(run.nested()))
    return folder / SETTINGS_FILE


if __name__ == '__main__':
    main()
