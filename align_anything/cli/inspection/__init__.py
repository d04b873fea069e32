"""A run's data as a person would look at it: in an HTML report and in the terminal, before any weights are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from align_anything.algorithms.base import Algorithm
from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_text
from align_anything.trainers.launch import quieten_libraries, settings_of
from align_anything.trainers.pairs import Pair

REPORT_NAME = 'inspect.html'


def inspect_run(
    pair: Pair, algorithm: type[Algorithm], argv: Sequence[str], *, rows: int | None = None, report: Path | None = None
) -> Path:
    """Writes the report of the data that a run with the settings `argv` trains on, and prints a summary.

    Beside the report of recorded episodes lie the statistics of their actions, `action_statistics.json`.

    Args:
        rows: how many rows of each set to read; None for all of them, of a stream for the first thousand.
        report: the file to write; None for `inspect.html` in the run's output folder.

    Raises:
        SettingsError, DataError, ModelError: as the run would, before it loads a model.
    """
    resolved = settings_of(pair, algorithm, argv, os.environ)
    quieten_libraries()
    # Imported once the settings are right: the heavy libraries take seconds that --help and a typo need not wait for.
    from align_anything.cli.inspection.page import render_page
    from align_anything.cli.inspection.rows import survey
    from align_anything.cli.inspection.terminal import print_survey
    from align_anything.datasets.action_statistics import write_seen
    from align_anything.trainers.runs.composing import with_composed
    from align_anything.trainers.runs.model_defaults import with_model_defaults

    resolved = with_model_defaults(with_composed(resolved))
    cfgs = resolved.cfgs
    path = Path(cfgs.logger_cfgs.output_dir) / REPORT_NAME if report is None else report
    found = survey(pair, resolved.algorithm, cfgs, rows)
    acted = next((one.acted for one in found.sets if one.acted is not None and one.acted.episodes), None)
    try:
        atomic_write_text(path, render_page(found, cfgs))
        if acted is not None:
            write_seen(path.parent, acted)
    except OSError as error:
        raise SettingsError([f'the report {path} cannot be written: {error}.']) from error
    print_survey(found, path)
    return path
