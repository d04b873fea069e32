"""The entry of every trainer: settings in, an exit code out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_anything.algorithms.base import Algorithm, find_algorithm, known_algorithms
from align_anything.configs.layers import Call
from align_anything.configs.resolve import Resolved, resolve
from align_anything.core.collector import lasting
from align_anything.core.distributed import is_main
from align_anything.core.errors import AlignAnythingError, CheckpointError, SettingsError, TrainingError
from align_anything.core.files import disk_problem
from align_anything.core.lazy import LazyMapping
from align_anything.core.logging import get_logger
from align_anything.engines.meeting import tell_others
from align_anything.trainers.pairs import Pair, find_pair

if TYPE_CHECKING:
    from align_anything.reporting.callbacks import Callback

logger = get_logger(__name__)

USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT


def leaf(pair: str, algorithm: str) -> Callable[..., None]:
    """Returns `main(argv=None)`, the trainer of the pair and the algorithm of these names, for `trainers/<pair>/`.

    Raises SettingsError for a name that is neither in the table of pairs nor an algorithm's.
    """
    its_pair, kind = find_pair(pair), find_algorithm(algorithm)

    def main(argv: Sequence[str] | None = None) -> None:
        launch(its_pair, kind, argv)

    return main


def launch(pair: Pair, algorithm: type[Algorithm], argv: Sequence[str] | None = None) -> None:
    """Runs `algorithm` on `pair` with the settings of the command line.

    Works under `deepspeed --module`, `torchrun -m` and `python -m`. An error that is the user's to mend is printed
    without a traceback and ends the process with code 2; Ctrl-C with code 130, SIGTERM with 143.
    """
    try:
        resolved = settings_of(pair, algorithm, sys.argv[1:] if argv is None else argv, os.environ)
        with lasting():
            import_libraries()
        run(pair, algorithm, resolved)
    except AlignAnythingError as error:
        # Every rank finds the same settings wrong; what goes wrong later may concern one rank alone.
        if is_main() or not isinstance(error, (SettingsError, CheckpointError)):
            logger.error('%s:\n%s', type(error).__name__, error)
        tell_others(error)
        sys.exit(USER_ERROR)
    except Exception as error:
        tell_others(error)
        raise
    except KeyboardInterrupt as error:
        if is_main():
            logger.warning('%s', str(error) or 'stopped by Ctrl-C; nothing was saved of what had not been saved')
        sys.exit(INTERRUPTED)


def import_libraries() -> None:
    """Imports what nearly every run imports sooner or later, once its settings are right.

    --help and a typo need not wait for it.
    """
    quieten_libraries()
    import deepspeed  # noqa: F401
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.processing_auto  # noqa: F401

    import align_anything.trainers.runs.dry_run
    import align_anything.trainers.runs.generate
    import align_anything.trainers.runs.online  # noqa: F401


def run(pair: Pair, algorithm: type[Algorithm], resolved: Resolved, callbacks: Sequence[Callback] = ()) -> Path | None:
    """Does what the settings ask for. Returns the folder of what was trained, None where nothing was.

    Raises TrainingError for a disk that is full, and as all that a run consists of. Of several ranks, one that is gone
    ends them all.
    """
    quieten_libraries()
    # Imported once the settings are right: the heavy libraries take seconds that --help and a typo need not wait for.
    from align_anything.engines.watch import watched
    from align_anything.trainers.runs.composing import with_composed
    from align_anything.trainers.runs.dry_run import dry_run
    from align_anything.trainers.runs.generate import generate
    from align_anything.trainers.runs.model_defaults import with_model_defaults
    from align_anything.trainers.runs.offline import train
    from align_anything.trainers.runs.online import train_online
    from align_anything.trainers.runs.scoring import score

    with watched():
        try:
            if algorithm.generates and not algorithm.trains:
                generate(pair, resolved)
                return None
            resolved = with_model_defaults(with_composed(resolved))
            if resolved.dry_run:
                dry_run(pair, resolved)
            elif not algorithm.trains:
                score(pair, resolved)
            else:
                return (train_online if algorithm.generates else train)(pair, resolved, callbacks)
            return None
        except OSError as error:
            problem = disk_problem(error, resolved.cfgs.logger_cfgs.output_dir)
            if not problem:
                raise
            raise TrainingError(problem) from error


def settings_of(
    pair: Pair,
    algorithm: type[Algorithm],
    argv: Sequence[str],
    environ: Mapping[str, str],
    call: Call | None = None,
) -> Resolved:
    """The settings of a run, see `resolved_of`. Tells its notes."""
    resolved = resolved_of(pair, algorithm, argv, environ, call)
    for note in resolved.notes:
        logger.info(note)
    return resolved


def resolved_of(
    pair: Pair,
    algorithm: type[Algorithm],
    argv: Sequence[str],
    environ: Mapping[str, str],
    call: Call | None = None,
) -> Resolved:
    """The settings of a run, as `resolve` makes them; the pair's defaults are those of training."""
    known = LazyMapping(known_algorithms)
    return resolve(
        *(pair.name, algorithm.name, algorithm, known, argv, environ, defaults_of(pair, algorithm)),
        reads=pair.reads,
        writes=pair.writes,
        call=call,
    )


def defaults_of(pair: Pair, algorithm: type[Algorithm]) -> Mapping[str, Any]:
    """The settings that the table of pairs gives to runs of an algorithm."""
    return pair.defaults if algorithm.trains else {}


def quieten_libraries() -> None:
    """Silences notes of libraries that say nothing about the run; their warnings and errors stay."""
    import torch
    from transformers.utils import logging as transformers_logging

    if not torch.cuda.is_available():
        # DeepSpeed warns when it has to find out by itself.
        os.environ.setdefault('DS_ACCELERATOR', 'cpu')
        logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    # Collectives that DeepSpeed calls by their old names.
    warnings.filterwarnings('ignore', category=FutureWarning, module='torch.distributed')
    logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
