"""What a run measures, on disk: `metrics.jsonl`, `timings.jsonl` and the tracker that was asked for."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align_anything.configs.redaction import without_secrets
from align_anything.core.distributed import is_main
from align_anything.core.files import atomic_write_text
from align_anything.reporting.callbacks import Watchers
from align_anything.reporting.trackers.base import COMPLETIONS, Answers, Tracker
from align_anything.reporting.trackers.start import make_tracker

METRICS_FILE = 'metrics.jsonl'
TIMINGS_FILE = 'timings.jsonl'


def peak_memory() -> int:
    """Returns the most bytes this process has held: on the CUDA device when one is in use, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics or timings file; a last line that was torn by a kill is left out.

    Non-finite values were written as the texts `nan`, `inf` and `-inf`, which JSON has no numbers for. Returns an
    empty list when the file does not exist.
    """
    source = Path(path)
    if not source.exists():
        return []
    records = []
    for line in source.read_text(encoding='utf-8').splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # lines are appended at once, so only the last can be torn
    return records


class MetricsWriter:
    """Appends one record per call to the files and hands it to the tracker. Ranks other than 0 write nothing.

    Args:
        output_dir: folder of the run.
        log_type: `tensorboard`, `wandb`, `clearml`, `mlflow`, `swanlab` or `none`; the two files are written always.
        project, run_name: how the tracker files the run.
        settings: the resolved settings as plain values; the tracker shows them, less whatever looks like a secret.
        resume_step: step that the run goes on from. Records past it are dropped, so that a run which was killed
            and resumed has the metrics of one that was not. None starts afresh; older files are kept as `*.old`.
        watchers: are told of all metrics; None for nobody.

    Raises SettingsError when the tracker's package is missing or it refuses to start.
    """

    def __init__(
        self,
        output_dir: str | Path,
        log_type: str = 'none',
        project: str = 'align-anything',
        run_name: str = '',
        settings: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        watchers: Watchers | None = None,
    ) -> None:
        self._watchers = watchers
        self._files: dict[str, StepFile] = {}
        self._tracker: Tracker | None = None
        if not is_main():
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = make_tracker(
            log_type,
            output_dir=folder,
            project=project,
            run_name=run_name or folder.resolve().name,
            settings=without_secrets(dict(settings or {})),
            resume_step=resume_step,
        )
        self._files = {name: StepFile(folder / name, resume_step) for name in (METRICS_FILE, TIMINGS_FILE)}

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        prefix: str = 'train',
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Records numbers of optimizer step `step` as `prefix/name`.

        `metrics` must repeat exactly when the run is repeated. What depends on the clock or the machine (tokens per
        second, memory) goes to `timings`, which has a file of its own.
        """
        if not self._files:
            return
        everything: dict[str, float] = {}
        for name, values in ((METRICS_FILE, metrics), (TIMINGS_FILE, timings or {})):
            named = {f'{prefix}/{key}': float(value) for key, value in values.items()}
            if named:
                self._files[name].append(step, named)
                everything.update(named)
        if self._tracker is not None:
            self._tracker.log(step, everything)
        if self._watchers is not None:
            self._watchers.logged(step, {**metrics, **(timings or {})}, prefix)

    def show(self, step: int, answers: Sequence[Answers], title: str = COMPLETIONS) -> None:
        """Hands responses to the tracker, which files them under `title`; the files have numbers only."""
        if self._tracker is not None:
            self._tracker.show(step, answers, title)

    def close(self) -> None:
        """Closes the files and lets the tracker send what it still holds. May be called twice."""
        for file in self._files.values():
            file.close()
        self._files = {}
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


class StepFile:
    """A file of one JSON object per line, each with its `step`, complete or absent after a kill."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        # An evaluation after the last step of an epoch follows the checkpoint of that step and is repeated on resume.
        self._resume_step, self._done_again = resume_step, []
        if resume_step is not None:
            kept = [record for record in read_metrics(path) if record['step'] <= resume_step]
            self._done_again = [tuple(record) for record in kept if record['step'] == resume_step]
            atomic_write_text(path, ''.join(_line(record) for record in kept))
        elif path.exists():
            path.replace(path.with_name(path.name + '.old'))
        self._file = open(path, 'a', encoding='utf-8')

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a record; one of a step that is done again, and stands there already, is left out."""
        record = {'step': step, **{name: _jsonable(value) for name, value in values.items()}}
        if step == self._resume_step and tuple(record) in self._done_again:
            return
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + '\n'


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _jsonable(item) for name, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
