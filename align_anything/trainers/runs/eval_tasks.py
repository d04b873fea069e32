"""The tasks of evaluations in training: what metrics say of the answers to the evaluation data."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

from align_anything.algorithms.evaluate import HARNESS
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, barrier, broadcast_object, is_main
from align_anything.core.errors import AlignAnythingError, DataError, SettingsError
from align_anything.core.files import atomic_write_text
from align_anything.core.types import Example, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.metrics.base import Metric, make_metrics, unwritten
from align_anything.metrics.samples import FILE, Record, Sample, Samples, read_samples
from align_anything.models.spec import Spec
from align_anything.reporting.media_files import MediaFiles
from align_anything.trainers.loops.judging import completions_of
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.generations import Scored, asked_of, known_of, record_of, turns_of

FOLDER, MEDIA = 'eval_tasks', 'media'
KEYS = ('eval_tasks', 'eval_task_kwargs')
TRIED = 16
"""First rows of which one must have what metrics read."""


def metrics_of(cfgs: RunCfgs, pair: Pair) -> list[Metric]:
    """Returns the metrics that the settings name, none where they name none.

    Raises SettingsError for those that cannot be, all that is wrong with them.
    """
    train = cfgs.train_cfgs
    metrics = make_metrics(train.eval_tasks, train.eval_task_kwargs, KEYS)
    problems = unwritten(metrics, pair, KEYS[0])
    for name in train.eval_tasks:
        if name.startswith(HARNESS):
            problems.append(f"train_cfgs.eval_tasks: '{name}' is of another library; align-anything evaluate runs it.")
    for metric in metrics:
        if metric.traits.compares:
            problems.append(
                f"train_cfgs.eval_tasks: '{metric.name}' compares two checkpoints; align-anything evaluate does, of "
                'those that the run leaves.'
            )
    if problems:
        raise SettingsError(problems)
    return metrics


@dataclass
class EvalTasks:
    """Measures answers to the evaluation data; `generate` would leave them as they are in `<folder>/eval_tasks/<step>`.

    Attributes:
        folder: of the run.
        spec: the rules of the model that answers.
        metrics: what measures.
        rows: the prompts of each source.
    """

    folder: Path
    spec: Spec
    metrics: Sequence[Metric]
    rows: Mapping[str, ExampleDataset]
    _records: list[Record] = field(default_factory=list)
    _own: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self._numbers = {
            source: {dataset.name_of(number): number for number in range(len(dataset))}
            for source, dataset in self.rows.items()
        }
        starts = accumulate((len(dataset) for dataset in self.rows.values()), initial=0)
        self._starts = dict(zip(self.rows, starts, strict=False))

    @property
    def names(self) -> list[str]:
        """What the metrics are called."""
        return [metric.name for metric in self.metrics]

    @property
    def costs(self) -> frozenset[str]:
        """Those that are better when they are lower."""
        return frozenset(metric.name for metric in self.metrics if metric.traits.lower_is_better)

    def begin(self, step: int) -> None:
        """Begins with the answers after a step. Every rank calls it, and the others too."""
        self._own, self._records = self.folder / FOLDER / f'{step:08d}', []
        if is_main():
            shutil.rmtree(self._own, ignore_errors=True)
            self._own.mkdir(parents=True)
        barrier()

    def add(self, source: str, examples: Sequence[Example]) -> None:
        """Writes down prompts of a source with one response each."""
        media, dataset = MediaFiles(self._own, sys.maxsize, MEDIA), self.rows[source]
        for example, completion in zip(examples, completions_of(examples, self.spec), strict=True):
            number = self._numbers[source][example.source]
            row, conversations = self._starts[source] + number, dataset.formatted(number)
            assert not isinstance(conversations, Skipped), 'the row was read before'
            messages = asked_of(example, conversations[0], row, media)
            files = [media.write(row, 'response_0', response.parts) for response in example.responses]
            turns = turns_of(example, row, media)
            record = record_of(row, example, messages, files, Scored({}, []), [completion], turns)
            self._records.append({**record, 'dataset': source})

    def measured(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns what the metrics say of all that was added, and of each source where there are several.

        Raises as metrics do, on every rank.
        """
        # Ranks that share rows have the same ones.
        every = (record for own in all_gather_object(self._records) for record in own)
        records = list({(record['dataset'], record['row']): record for record in every}.values())
        found: tuple[dict[str, float], dict[str, float]] = ({}, {})
        error: AlignAnythingError | None = None
        if is_main() and records:
            records.sort(key=itemgetter('row'))
            lines = [json.dumps(record, ensure_ascii=False) + '\n' for record in records]
            atomic_write_text(self._own / FILE, ''.join(lines))
            try:
                found = self._said_of(read_samples(self._own))
            except AlignAnythingError as raised:
                error = raised
        found, error = broadcast_object((found, error))
        if error is not None:
            raise error
        return found

    def _said_of(self, samples: Samples) -> tuple[dict[str, float], dict[str, float]]:
        numbers: dict[str, list[int]] = {source: [] for source in self.rows}
        for number, sample in enumerate(samples):
            numbers[sample.record['dataset']].append(number)
        whole: dict[str, float | None] = {}
        of_each: dict[str, float | None] = {}
        for metric in self.metrics:
            measured = metric.measure(samples)
            whole[metric.name] = measured.whole
            if len(numbers) > 1 and measured.value is None:
                of_each |= {f'{source}/{metric.name}': measured.over(own) for source, own in numbers.items()}
        return _known(whole), _known(of_each)

    def try_out(self) -> None:
        """Has metrics that ask no model say something of one of the first prompts of each source.

        Raises DataError where they cannot, such as for rows without golden answers.
        """
        for dataset in self.rows.values():
            try_out(self.metrics, dataset, KEYS[0])


def try_out(metrics: Sequence[Metric], dataset: ExampleDataset, key: str) -> None:
    """Has metrics that ask no model say something of one of the first prompts, and of an empty answer to it.

    Raises DataError where they cannot, such as for rows without golden answers; `key` is the setting that names them.
    """
    pure = [metric for metric in metrics if metric.traits.is_pure]
    sample = _tried(dataset, key) if pure else None
    for metric in pure:
        metric.measure(Samples(Path(), [sample]))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _tried(dataset: ExampleDataset, key: str) -> Sample:
    """The first usable prompt among the first ones, with an empty answer. Raises DataError where there is none."""
    made = None
    for number in range(min(TRIED, len(dataset))):
        made = dataset[number]
        if isinstance(made, Example):
            response = {'text': '', 'finish_reason': 'stop', 'units': 0}
            record = {'row': number, 'source': made.source, 'messages': [], 'responses': [response], **known_of(made)}
            return Sample(Path(), record, 0)
    reason = f': {made.source}: {made.reason}' if isinstance(made, Skipped) else ''
    raise DataError(f'train_cfgs.{key}: none of the first rows of {dataset.sources[0].name} can be answered{reason}.')
