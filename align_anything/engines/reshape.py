"""Training state that other ranks than those who wrote it can read."""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from align_anything.core.distributed import barrier, is_main
from align_anything.core.errors import TrainingError


def is_partitioned_state(folder: Path) -> bool:
    """Whether the DeepSpeed state in `folder` is in as many parts as there were ranks."""
    return any(folder.glob('*_optim_states.pt'))


@contextmanager
def reshaped(folder: Path, scratch: Path) -> Iterator[Path]:
    """Gives a copy of the DeepSpeed state in `folder`, by parameter and not by rank, below `scratch` for as long.

    Every rank calls it; the main rank makes the copy. Raises TrainingError when DeepSpeed cannot.
    """
    from deepspeed.checkpoint.ds_to_universal import main as convert

    made = scratch / folder.name
    problem = ''
    if is_main():
        shutil.rmtree(scratch, ignore_errors=True)
        made.mkdir(parents=True)
        arguments = Namespace(
            input_folder=str(folder),
            output_folder=str(made),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        try:
            with redirect_stdout(io.StringIO()):
                convert(arguments)
        except (RuntimeError, ValueError, KeyError, AssertionError, OSError, NotImplementedError) as error:
            problem = f'{type(error).__name__}: {error}'
    barrier()
    try:
        if problem:
            raise TrainingError(f'--resume: the state in {folder} cannot be split among other ranks ({problem}).')
        yield made
    finally:
        barrier()
        if is_main():
            shutil.rmtree(scratch, ignore_errors=True)
