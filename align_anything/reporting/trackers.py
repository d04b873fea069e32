"""Experiment trackers: TensorBoard, Weights & Biases and ClearML, each imported only when asked for."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_json

if TYPE_CHECKING:
    from PIL import Image

# What a tracker needs installed, and the extra of this package that brings it.
PACKAGES = {
    'tensorboard': ('tensorboard', ''),
    'wandb': ('wandb', '[wandb]'),
    'clearml': ('clearml', '[clearml]'),
}
RUN_ID_FILE = 'tracker.json'
COMPLETIONS = 'completions'


@dataclass(frozen=True)
class Answers:
    """A prompt and responses to it.

    Attributes:
        prompt: what was asked.
        image: its media in one small image, where there is something to see.
        responses: the text of each response.
        rewards: what each of them was worth, by name.
    """

    prompt: str
    picture: Image.Image | None
    responses: list[str]
    rewards: dict[str, list[float]]

    def rows(self) -> list[tuple[Any, ...]]:
        """A row for each response: prompt, response, rewards."""
        return [
            (self.prompt, response, *rewards)
            for response, *rewards in zip(self.responses, *self.rewards.values(), strict=True)
        ]


class Tracker(Protocol):
    """Receives what the run measures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of one optimizer step, already named `train/loss`."""

    def show(self, step: int, answers: Sequence[Answers]) -> None:
        """Takes some prompts of one rollout with their responses; all have rewards of the same names."""

    def close(self) -> None:
        """Sends what is left and ends the run."""


def check_tracker(log_type: str) -> None:
    """Raises SettingsError when `log_type` is unknown or its package is missing; call it before a model loads."""
    if log_type == 'none':
        return
    if log_type not in PACKAGES:
        known = ', '.join([*PACKAGES, 'none'])
        raise SettingsError([f"logger_cfgs.log_type is '{log_type}', which is none of: {known}."])
    package, extra = PACKAGES[log_type]
    if importlib.util.find_spec(package) is None:
        raise SettingsError(
            [
                f"logger_cfgs.log_type is '{log_type}', but the package '{package}' is not installed. "
                f"Install it with: pip install 'align-anything{extra}', or choose another log_type "
                '(metrics.jsonl is written in any case).'
            ]
        )


def make_tracker(
    log_type: str,
    *,
    output_dir: Path,
    project: str,
    run_name: str,
    settings: dict[str, Any],
    resume_step: int | None,
) -> Tracker | None:
    """Starts the tracker; None for `none`. Raises SettingsError when it is missing or refuses to start."""
    check_tracker(log_type)
    if log_type == 'none':
        return None
    makers = {'tensorboard': TensorBoardTracker, 'wandb': WandbTracker, 'clearml': ClearMLTracker}
    return makers[log_type](output_dir, project, run_name, settings, resume_step)


class TensorBoardTracker:
    """Writes event files to `<output_dir>/tensorboard`."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Also by the first run: TensorBoard takes the first mark of a start that it sees for no restart.
        purge = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(log_dir=str(output_dir / 'tensorboard'), purge_step=purge)
        self._writer.add_text('run', f'{project} / {run_name}')
        self._writer.add_text('settings', f'```json\n{json.dumps(settings, indent=2, default=str)}\n```')

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, answers: Sequence[Answers]) -> None:
        """Adds a text with a table, and the media of each prompt as an image."""
        columns = ('prompt', 'response', *answers[0].rewards)
        rows = [columns, ['---'] * len(columns), *(map(_cell, row) for one in answers for row in one.rows())]
        self._writer.add_text(COMPLETIONS, '\n'.join(f'| {" | ".join(row)} |' for row in rows), step)
        for number, one in enumerate(answers, 1):
            if one.picture is not None:
                self._writer.add_image(
                    f'{COMPLETIONS}/prompt {number}', np.asarray(one.picture), step, dataformats='HWC'
                )

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class WandbTracker:
    """Logs to Weights & Biases; a resumed run goes on under the same id."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        import wandb

        known_id = _stored_id(output_dir, 'wandb', resume_step)
        try:
            self._run = wandb.init(
                project=project,
                name=run_name,
                dir=str(output_dir),
                config=settings,
                id=known_id,
                resume='allow' if known_id else None,
                # The collected metadata holds the command line, where a token may stand.
                settings=wandb.Settings(x_disable_meta=True, disable_code=True, disable_git=True),
            )
        except wandb.Error as error:
            raise _not_started('wandb', error, 'Log in with `wandb login`, set WANDB_MODE=offline') from error
        _store_id(output_dir, 'wandb', self._run.id)
        # Our own step axis: wandb's counter refuses to go back, as a resumed run does.
        self._run.define_metric('step', hidden=True)
        self._run.define_metric('*', step_metric='step')

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against the optimizer step."""
        self._run.log({'step': step, **values})

    def show(self, step: int, answers: Sequence[Answers]) -> None:
        """Logs a table with the media of each prompt in a column."""
        import wandb

        pictures = [None if one.picture is None else wandb.Image(one.picture) for one in answers]
        rows = [
            [prompt, picture, *rest]
            for one, picture in zip(answers, pictures, strict=True)
            for prompt, *rest in one.rows()
        ]
        columns = ['prompt', 'media', 'response', *answers[0].rewards]
        self._run.log({'step': step, COMPLETIONS: wandb.Table(columns=columns, data=rows)})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class ClearMLTracker:
    """Logs to ClearML; a resumed run goes on in the same task."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        from clearml import Task

        known_id = _stored_id(output_dir, 'clearml', resume_step)
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
            raise _not_started('clearml', error, 'Run `clearml-init`, set CLEARML_OFFLINE_MODE=1') from error
        _store_id(output_dir, 'clearml', self._task.id)
        # A continued task would otherwise add its last iteration to every step we report.
        self._task.set_initial_iteration(0)
        self._task.connect_configuration(settings, name='settings')
        self._logger = self._task.get_logger()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Reports `train/loss` as series `train` of plot `loss`, so that train and eval share a plot."""
        for name, value in values.items():
            series, _, title = name.partition('/')
            self._logger.report_scalar(title=title or series, series=series, value=value, iteration=step)

    def show(self, step: int, answers: Sequence[Answers]) -> None:
        """Reports a table, and the media of each prompt as an image."""
        rows = [('prompt', 'response', *answers[0].rewards), *(row for one in answers for row in one.rows())]
        self._logger.report_table(
            title=COMPLETIONS, series=COMPLETIONS, iteration=step, table_plot=[list(map(str, row)) for row in rows]
        )
        for number, one in enumerate(answers, 1):
            if one.picture is not None:
                self._logger.report_image(
                    title=COMPLETIONS, series=f'prompt {number}', iteration=step, image=one.picture
                )

    def close(self) -> None:
        """Waits until everything is sent."""
        self._task.close()


def _cell(value: str | float) -> str:
    """A value in a table of Markdown, of which nothing is taken for Markdown or HTML."""
    if isinstance(value, float):
        return f'{value:.4g}'
    escaped = re.sub(r'[^\w\s]|_', lambda found: f'&#{ord(found[0])};', value)
    return '<br>'.join(escaped.splitlines())


def _not_started(log_type: str, error: Exception, advice: str) -> SettingsError:
    return SettingsError([f'{log_type} did not start: {error}. {advice}, or choose another logger_cfgs.log_type.'])


def _stored_id(output_dir: Path, log_type: str, resume_step: int | None) -> str | None:
    path = output_dir / RUN_ID_FILE
    if resume_step is None or not path.exists():
        return None
    stored = json.loads(path.read_text(encoding='utf-8'))
    return stored['id'] if stored['log_type'] == log_type else None


def _store_id(output_dir: Path, log_type: str, run_id: str) -> None:
    atomic_write_json(output_dir / RUN_ID_FILE, {'log_type': log_type, 'id': run_id})
