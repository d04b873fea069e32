"""MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.logging import get_logger
from align_anything.reporting.trackers.base import (
    Answers,
    named_pictures,
    named_sounds,
    not_started,
    store_id,
    stored_id,
)

logger = get_logger(__name__)

ADVICE = 'Set MLFLOW_TRACKING_URI to a server or a database that answers, such as sqlite:///mlflow.db'
MARKS = re.compile(r'[^\w\-. :/]', re.ASCII)


class MLflowTracker:
    """Logs to MLflow, where MLFLOW_TRACKING_URI says; a resumed run goes on in the same run.

    Points are sent by a thread of MLflow, so that neither a slow nor a dead server holds up training.
    """

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        known_id = stored_id(output_dir, 'mlflow', resume_step)
        try:
            self._client = MlflowClient()
            if known_id is None:
                experiment = self._client.get_experiment_by_name(project)
                number = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
                self._id = self._client.create_run(number, run_name=run_name).info.run_id
                # A parameter cannot change, the settings of a resumed run can; the file has those in force.
                self._log_parameters(settings)
            else:
                self._id = known_id
                self._client.update_run(known_id, status='RUNNING')
            self._client.log_text(self._id, dump_yaml(settings), 'settings.yaml')
        except MlflowException as error:
            raise not_started('mlflow', error, ADVICE) from error
        store_id(output_dir, 'mlflow', self._id)
        self._sending: list[Any] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against the optimizer step, under names that MLflow takes."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name_of(name), float(value), now, step) for name, value in values.items()]
        self._sending.append(self._client.log_batch(self._id, metrics=metrics, synchronous=False))

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Logs a table and the media of prompts and responses as files of the run, under the step."""
        from mlflow.exceptions import MlflowException

        columns = ('prompt', 'response', *answers[0].rewards)
        rows = [row for one in answers for row in one.rows()]
        table = {name: [row[number] for row in rows] for number, name in enumerate(columns)}
        folder = f'{title}/step {step:08d}'
        try:
            self._client.log_table(self._id, data=table, artifact_file=f'{folder}/{title}.json')
            for name, picture in named_pictures(answers):
                self._client.log_image(self._id, picture, artifact_file=f'{folder}/{name}.png')
            for name, sound in named_sounds(answers):
                self._client.log_artifact(self._id, str(sound), artifact_path=f'{folder}/{name}')
        except MlflowException as error:
            logger.warning('mlflow did not take the %s of step %d: %s', title, step, error)

    def close(self) -> None:
        """Waits until everything is sent, and says what was not."""
        from mlflow.exceptions import MlflowException

        try:
            for sent in self._sending:
                sent.wait()
            self._client.set_terminated(self._id)
        except MlflowException as error:
            logger.warning('mlflow did not take all metrics; metrics.jsonl has them: %s', error)

    def _log_parameters(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        flat = [(name_of(name), str(value)) for name, value in _flat(settings)]
        told = [Param(name, value) for name, value in flat if len(value) <= MAX_PARAM_VAL_LENGTH]
        for first in range(0, len(told), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._id, params=told[first : first + MAX_PARAMS_TAGS_PER_BATCH])


def name_of(name: str) -> str:
    """The name with `_` for what MLflow refuses in one: other marks, and parts that would lead to another folder."""
    return '/'.join('_' if part.strip('.') == '' else part for part in MARKS.sub('_', name).split('/'))


def _flat(values: Mapping[str, Any], above: str = '') -> Iterator[tuple[str, Any]]:
    """`{'train_cfgs': {'seed': 1}}` as `train_cfgs.seed`, 1."""
    for name, value in values.items():
        path = f'{above}.{name}' if above else str(name)
        yield from _flat(value, path) if isinstance(value, Mapping) else [(path, value)]
