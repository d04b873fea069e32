"""Trains what a YAML file of Any2Any Trainer asks for.

python scripts/train_multimodal.py configs/sft/simple_hf_training.yaml [--dry-run] [--SETTING VALUE ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from checkpoint import add_checkpoint
from launcher import launched
from mapping import ALGORITHM, Run, read_file
from rows import add_data

from align_anything.algorithms.base import find_algorithm, known_algorithms
from align_anything.configs.resolve import resolve
from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.distributed import is_main
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import atomic_write_text, writable_folder
from align_anything.core.lazy import LazyMapping
from align_anything.core.logging import get_logger
from align_anything.trainers.launch import USER_ERROR, leaf
from align_anything.trainers.pairs import find_pair

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
        run = read_file(Path(given[0]))
        add_launcher(run, os.environ)
        add_data(run)
        folder = checked_folder(run, Path(given[0]).name, given[1:], os.environ)
        add_checkpoint(run, folder)
        # Every rank writes the same.
        atomic_write_text(folder / SETTINGS_FILE, dump_yaml(run.nested()))
    except AlignAnythingError as error:
        if is_main():
            logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)
    for note in run.notes:
        logger.info(note)
    leaf(run.pair, ALGORITHM)(['--config', str(folder / SETTINGS_FILE), *given[1:]])


def add_launcher(run: Run, environ: Mapping[str, str]) -> None:
    """Adds what `accelerate launch` asks for. Raises SettingsError where the file asks for something else."""
    settings, notes = launched(environ)
    for key, value in settings.items():
        run.put(f'train_cfgs.{key}', value, 'accelerate launch')
    run.notes += notes
    if run.problems:
        raise SettingsError(run.problems)


def checked_folder(run: Run, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> Path:
    """Returns the output folder of the run, once all of its settings are right.

    Its checkpoint, which may take long to make, is not there yet. Raises SettingsError with all that is wrong.
    """
    pair, algorithm = find_pair(run.pair), find_algorithm(ALGORITHM)
    nested = run.nested()
    nested.setdefault('model_cfgs', {})['model_name_or_path'] = run.file.model_name_or_path
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(dump_yaml(nested), encoding='utf-8')
        given = ['--config', str(file), *argv]
        known = LazyMapping(known_algorithms)
        resolved = resolve(
            pair.name, algorithm.name, algorithm, known, given, environ, pair.defaults, pair.reads, pair.writes
        )
    return writable_folder(resolved.cfgs.logger_cfgs.output_dir, 'output_dir')


if __name__ == '__main__':
    main()
