"""Several runs of one kind, each a process and a folder of its own, and a table of what came of them."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align_anything.cli.leaves import find_run
from align_anything.configs.layers import Call
from align_anything.configs.sweep import Settings, Span, SweepCfgs
from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_json, atomic_write_text, read_json, writable_folder
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

OUTCOME, ASKED, LOG, TABLE, PAGE, SWEEP = (
    *('outcome.json', 'trial.yaml', 'log.txt', 'table.csv', 'table.html', 'sweep.json'),
)
FINISHED, FAILED, STOPPED = 'finished', 'failed', 'stopped'
COMMAND = (sys.executable, '-m', 'align_anything.cli', 'train')
SAID = 300
"""Most characters of an error in the table."""


@dataclass
class Trial:
    """One run of a sweep.

    Attributes:
        number: in the order of their beginnings.
        search: its values of the searched settings.
        state: `finished`, `failed`, or `stopped` before its end.
        value: of the metric; None where the run gave none.
        error: what it said last, where it failed.
        seconds: that it took.
    """

    number: int
    search: Settings
    state: str = STOPPED
    value: float | None = None
    error: str = ''
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f'trial_{self.number:03d}'


@dataclass
class Sweep:
    """The trials of a sweep in its folder, those of earlier starts among them; `command` runs one."""

    cfgs: SweepCfgs
    folder: Path
    command: Sequence[str]
    trials: list[Trial] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def trial_of(self, search: Settings) -> Trial:
        """Returns the trial with these values, a new one where there is none."""
        found = next((trial for trial in self.trials if trial.search == search), None)
        if found is None:
            found = Trial(len(self.trials), search)
            self.trials.append(found)
        return found

    def run(self, trial: Trial) -> Trial:
        """Runs a trial to its end, from its last checkpoint where an earlier start left one."""
        folder, cfgs = self.folder / trial.name, self.cfgs
        folder.mkdir(exist_ok=True)
        atomic_write_text(folder / ASKED, dump_yaml({**cfgs.settings, **trial.search}))
        words = [cfgs.pair, cfgs.algorithm, '--config', str(folder / ASKED), '--output_dir', str(folder / 'run')]
        command = [*self.command, *words, '--resume', 'auto']
        started = time.monotonic()
        with open(folder / LOG, 'wb') as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        trial.seconds = round(trial.seconds + time.monotonic() - started, 1)
        trial.value, trial.error = None, ''
        if self.stopping.is_set():
            trial.state = STOPPED
        elif code:
            trial.state, trial.error = FAILED, _last_words(folder / LOG)
        else:
            trial.state, trial.value = FINISHED, _last_value(folder / 'run', cfgs.metric)
            if trial.value is None:
                trial.state, trial.error = FAILED, f"the run measured no '{cfgs.metric}'"
        atomic_write_json(folder / OUTCOME, asdict(trial))
        return trial

    def stop(self) -> None:
        """Ends the trials that run, each with a checkpoint."""
        self.stopping.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def ranked(self) -> list[Trial]:
        """Returns the trials, the best first, and last those without a value."""
        sign = 1 if self.cfgs.direction == 'minimize' else -1
        return sorted(self.trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))

    def rows(self) -> list[dict[str, Any]]:
        """Returns the table: a row for each trial, the best first."""
        return [
            {
                'trial': trial.name,
                self.cfgs.metric: '' if trial.value is None else f'{trial.value:.6g}',
                **{name: _shown(trial.search.get(name)) for name in self.cfgs.search},
                'state': trial.state,
                'seconds': f'{trial.seconds:.1f}',
                'error': trial.error,
            }
            for trial in self.ranked()
        ]

    def write(self) -> None:
        """Writes the table, and a page of it."""
        from align_anything.reporting.html import render

        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self.folder / TABLE, text.getvalue())
        title = f'{self.cfgs.pair} {self.cfgs.algorithm}: {self.cfgs.metric}, {self.cfgs.direction}'
        atomic_write_text(self.folder / PAGE, render('sweep.html.jinja', title=title, rows=rows))


def sweep(cfgs: SweepCfgs, origin: str, command: Sequence[str] = COMMAND) -> Sweep:
    """Runs a sweep, or what is left of it, and returns it with its table written.

    `origin` is the file that it was read from, and `command` what runs a training. Raises SettingsError for settings
    that no trial could run with, and for a folder of another sweep; KeyboardInterrupt when it was stopped, its trials
    with checkpoints.
    """
    check(cfgs, origin)
    made = _opened(cfgs, command)
    searching = _Suggested(made) if cfgs.method == 'optuna' else _Grid(made)
    running: set[Future[Trial]] = set()
    try:
        with ThreadPoolExecutor(cfgs.jobs) as pool:
            try:
                while True:
                    while len(running) < cfgs.jobs and (trial := searching.next()) is not None:
                        logger.info('%s: %s', trial.name, _told(trial.search))
                        running.add(pool.submit(made.run, trial))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for trial in (future.result() for future in done):
                        searching.tell(trial)
                        made.write()
                        said = trial.error if trial.value is None else f'{cfgs.metric} {trial.value:.6g}'
                        logger.info('%s %s: %s', trial.name, trial.state, said)
            except BaseException:
                made.stop()
                raise
    finally:
        if made.trials:
            made.write()
    return made


def check(cfgs: SweepCfgs, origin: str) -> None:
    """Raises SettingsError with all that is wrong with the settings of the trials."""
    from align_anything.trainers.launch import settings_of

    pair, algorithm = find_run(cfgs.pair, cfgs.algorithm)
    own = {'output_dir', 'logger_cfgs.output_dir', 'resume', 'train_cfgs.resume'} & {*cfgs.settings, *cfgs.search}
    problems = [f'{origin}: {name} is what the sweep gives to each trial; leave it out.' for name in sorted(own)]
    twice = sorted({*cfgs.settings} & {*cfgs.search})
    problems += [f'{origin}: {name} stands under settings and under search; remove one.' for name in twice]
    for search in cfgs.corners() if not problems else ():
        settings = {**_flat(cfgs.settings), **search, 'output_dir': cfgs.output_dir}
        try:
            settings_of(pair, algorithm, [], os.environ, Call(origin, settings))
        except SettingsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise SettingsError(problems)


def _flat(settings: Settings) -> Settings:
    """The settings by dotted names where they stand in groups, as those of a file do."""
    flat: Settings = {}
    for name, value in settings.items():
        grouped = name.endswith('_cfgs') and isinstance(value, Mapping)
        flat |= {f'{name}.{key}': item for key, item in value.items()} if grouped else {name: value}
    return flat


def _opened(cfgs: SweepCfgs, command: Sequence[str]) -> Sweep:
    folder = writable_folder(cfgs.output_dir, 'output_dir')
    same = {name: vars(cfgs)[name] for name in ('pair', 'algorithm', 'metric', 'direction', 'settings')}
    if (folder / SWEEP).is_file():
        there = read_json(folder / SWEEP)
        other = [name for name in same if json.loads(json.dumps(same[name])) != there[name]]
        if other:
            raise SettingsError(
                [
                    f'output_dir: {folder} holds another sweep, with another {" and ".join(other)}. Name another '
                    'folder, or go on with that sweep as it was.'
                ]
            )
    atomic_write_json(folder / SWEEP, same)
    made = Sweep(cfgs, folder, command)
    made.trials += [Trial(**read_json(file)) for file in sorted(folder.glob(f'trial_*/{OUTCOME}'))]
    return made


class _Grid:
    """Every combination that has not finished yet."""

    def __init__(self, sweep: Sweep) -> None:
        self._left = [trial for trial in map(sweep.trial_of, sweep.cfgs.grid()) if trial.state != FINISHED]

    def next(self) -> Trial | None:
        """Returns the next trial, None where there is none."""
        return self._left.pop(0) if self._left else None

    def tell(self, trial: Trial) -> None:
        """Needs to know nothing."""


class _Suggested:
    """What optuna suggests, given what came of earlier trials."""

    def __init__(self, sweep: Sweep) -> None:
        try:
            import optuna
        except ImportError as error:
            raise SettingsError(
                ["method: optuna needs the package optuna: pip install 'align-anything[sweep]'."]
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._sweep = optuna, sweep
        sampler = optuna.samplers.TPESampler(seed=sweep.cfgs.seed + len(sweep.trials))
        self._study = optuna.create_study(direction=sweep.cfgs.direction, sampler=sampler)
        self._spaces = {name: self._space(values) for name, values in sweep.cfgs.search.items()}
        other = next((trial for trial in sweep.trials if not self._fits(trial.search)), None)
        if other is not None:
            raise SettingsError(
                [
                    f'search: {sweep.folder} holds trials of another search, such as {other.name} '
                    f'({_told(other.search)}). Name another output_dir, or search where these lie too.'
                ]
            )
        self._again = [trial for trial in sweep.trials if trial.state != FINISHED]
        self._asked: dict[int, Any] = {}
        for trial in sweep.trials:
            if trial.state == FINISHED:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=self._as_parameters(trial.search), distributions=self._spaces, value=trial.value
                    )
                )

    def next(self) -> Trial | None:
        """Returns the next trial, None where all are done."""
        if self._again:
            trial = self._again.pop(0)
            self._study.enqueue_trial(self._as_parameters(trial.search))
            self._asked[trial.number] = self._study.ask(self._spaces)
            return trial
        if len(self._sweep.trials) >= self._sweep.cfgs.trials:
            return None
        asked = self._study.ask(self._spaces)
        trial = Trial(len(self._sweep.trials), self._as_settings(asked.params))
        self._sweep.trials.append(trial)
        self._asked[trial.number] = asked
        return trial

    def tell(self, trial: Trial) -> None:
        """Tells optuna what came of a trial."""
        state = None if trial.state == FINISHED else self._optuna.trial.TrialState.FAIL
        self._study.tell(self._asked.pop(trial.number), trial.value if state is None else None, state=state)

    def _space(self, values: list[Any] | Span) -> Any:
        distributions = self._optuna.distributions
        if isinstance(values, list):
            # By their numbers: optuna's own choices hold no lists and mappings.
            return distributions.CategoricalDistribution(range(len(values)))
        kind = distributions.IntDistribution if values.is_whole else distributions.FloatDistribution
        return kind(values.low, values.high, log=values.log)

    def _fits(self, settings: Settings) -> bool:
        """Whether optuna could have suggested these values."""
        search = self._sweep.cfgs.search
        return settings.keys() == search.keys() and all(
            settings[name] in values if isinstance(values, list) else values.low <= settings[name] <= values.high
            for name, values in search.items()
        )

    def _as_settings(self, parameters: Settings) -> Settings:
        search = self._sweep.cfgs.search
        return {
            name: values[parameters[name]] if isinstance(values, list) else parameters[name]
            for name, values in search.items()
        }

    def _as_parameters(self, settings: Settings) -> Settings:
        search = self._sweep.cfgs.search
        return {
            name: values.index(settings[name]) if isinstance(values, list) else settings[name]
            for name, values in search.items()
        }


def _last_value(run: Path, metric: str) -> float | None:
    from align_anything.reporting.metrics import METRICS_FILE, read_metrics

    values = [record[metric] for record in read_metrics(run / METRICS_FILE) if metric in record]
    return float(values[-1]) if values else None


def _last_words(log: Path) -> str:
    """The error that a log ends with, in one line."""
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines) if 'Error' in line.split(':')[0]), default=len(lines) - 1)
    said = ' '.join(lines[max(start, 0) :]) or 'it ended without a word'
    return said if len(said) <= SAID else f'{said[:SAID]}…'


def _shown(value: Any) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _told(search: Settings) -> str:
    return ', '.join(f'{name} {_shown(value)}' for name, value in search.items())


def table(rows: list[dict[str, Any]]) -> Any:
    """Returns the rows for a terminal."""
    from rich.table import Table

    made = Table(*rows[0])
    for row in rows:
        made.add_row(*map(str, row.values()))
    return made
