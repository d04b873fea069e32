"""The entry of every trainer: settings in, an exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.configs.resolve import resolve
from align_anything.core.distributed import is_main
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.trainers.base.pair import Pair

logger = get_logger(__name__)

USER_ERROR = 2


def launch(pair: Pair, algorithm: type[Algorithm], argv: Sequence[str] | None = None) -> None:
    """Runs `algorithm` on `pair` with the settings of the command line.

    Works under `deepspeed --module`, `torchrun -m` and `python -m`. An error that is the user's to mend is printed
    without a traceback and ends the process with code 2.
    """
    try:
        start(pair, algorithm, sys.argv[1:] if argv is None else argv, os.environ)
    except AlignAnythingError as error:
        # Every rank finds the same settings wrong; what goes wrong later may concern one rank alone.
        if is_main() or not isinstance(error, SettingsError):
            logger.error('%s', error)
        sys.exit(USER_ERROR)


def start(pair: Pair, algorithm: type[Algorithm], argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """As `launch`, but lets errors through."""
    known = {name: ALGORITHMS.get(name) for name in ALGORITHMS}
    resolved = resolve(pair.name, algorithm.name, algorithm, known, argv, environ)
    # Imported once the settings are right: the heavy libraries take seconds that --help and a typo need not wait for.
    from align_anything.trainers.base.dry_run import dry_run
    from align_anything.trainers.base.run import train

    (dry_run if resolved.dry_run else train)(pair, resolved)
