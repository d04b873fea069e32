"""Logging that speaks once: notes come from rank 0 only, warnings from any rank with its number in front."""

from __future__ import annotations

import logging
import os
import sys

from align_anything.core.distributed import rank, world_size

ROOT_NAME = 'align_anything'
LEVEL_VARIABLE = 'ALIGN_ANYTHING_LOG_LEVEL'


def get_logger(name: str) -> logging.Logger:
    """Returns the logger for a module (`get_logger(__name__)`).

    Below WARNING only rank 0 is heard. The level is INFO unless `ALIGN_ANYTHING_LOG_LEVEL` names another.
    """
    root = logging.getLogger(ROOT_NAME)
    if not any(isinstance(handler, RankHandler) for handler in root.handlers):
        root.addHandler(RankHandler())
        root.setLevel(os.environ.get(LEVEL_VARIABLE, 'INFO').upper())
    return logging.getLogger(name if name.split('.')[0] == ROOT_NAME else f'{ROOT_NAME}.{name}')


class RankHandler(logging.Handler):
    """Writes records to standard error, which is looked up each time because progress bars and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record, unless it is a mere note from another rank than 0."""
        # The rank is read here, not at creation: loggers are made at import, before the ranks exist.
        current = rank()
        if current != 0 and record.levelno < logging.WARNING:
            return
        where = f' rank {current}' if world_size() > 1 and record.levelno >= logging.WARNING else ''
        level = f' {record.levelname}' if record.levelno >= logging.WARNING else ''
        try:
            sys.stderr.write(f'[align-anything{where}]{level} {self.format(record)}\n')
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)
