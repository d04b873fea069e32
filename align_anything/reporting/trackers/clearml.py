"""ClearML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.reporting.trackers.base import (
    Answers,
    named_pictures,
    named_sounds,
    not_started,
    store_id,
    stored_id,
)


class ClearMLTracker:
    """Logs to ClearML; a resumed run goes on in the same task."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        from clearml import Task

        known_id = stored_id(output_dir, 'clearml', resume_step)
        try:
            self._task = Task.init(
                project_name=project,
                task_name=run_name,
                reuse_last_task_id=False,
                continue_last_task=known_id or False,
                auto_connect_arg_parser=False,
                auto_connect_frameworks=False,
            )
        except ValueError as error:
            raise not_started('clearml', error, 'Run `clearml-init`, set CLEARML_OFFLINE_MODE=1') from error
        store_id(output_dir, 'clearml', self._task.id)
        # A continued task would otherwise add its last iteration to every step we report.
        self._task.set_initial_iteration(0)
        self._task.connect_configuration(settings, name='settings')
        self._logger = self._task.get_logger()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Reports `train/loss` as series `train` of plot `loss`, so that train and eval share a plot."""
        for name, value in values.items():
            series, _, title = name.partition('/')
            self._logger.report_scalar(title=title or series, series=series, value=value, iteration=step)

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Reports a table, and the media of prompts and responses as images and audio."""
        rows = [('prompt', 'response', *answers[0].rewards), *(row for one in answers for row in one.rows())]
        self._logger.report_table(
            title=title, series=title, iteration=step, table_plot=[list(map(str, row)) for row in rows]
        )
        for name, picture in named_pictures(answers):
            self._logger.report_image(title=title, series=name, iteration=step, image=picture)
        for name, sound in named_sounds(answers):
            self._logger.report_media(title=title, series=name, iteration=step, local_path=str(sound))

    def close(self) -> None:
        """Waits until everything is sent."""
        self._task.close()
