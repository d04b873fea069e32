"""Metrics on disk, trackers, console and plot."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from align_anything.core.errors import SettingsError
from align_anything.reporting.console import TrainingConsole, format_duration, format_values
from align_anything.reporting.metrics import MetricsWriter, peak_memory, read_metrics
from align_anything.reporting.panels import read_curves
from align_anything.reporting.trackers.start import check_tracker
from tests.trainers.runs import lines, sft, succeed, text_rows, write_rows


def run(folder: Path, first: int, last: int, speed: float, resume_step: int | None = None) -> None:
    writer = MetricsWriter(folder, resume_step=resume_step)
    for step in range(first, last + 1):
        writer.log(step, {'loss': 1 / step, 'learning_rate': 1e-3}, timings={'tokens_per_second': speed})
        if step % 2 == 0:
            writer.log(step, {'loss': 2 / step}, prefix='eval')
    writer.close()


def test_one_object_per_line_with_clock_values_apart(tmp_path: Path) -> None:
    run(tmp_path, 1, 2, speed=100.0)
    assert [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [
        {'step': 1, 'train/loss': 1.0, 'train/learning_rate': 0.001},
        {'step': 2, 'train/loss': 0.5, 'train/learning_rate': 0.001},
        {'step': 2, 'eval/loss': 1.0},
    ]
    assert read_metrics(tmp_path / 'timings.jsonl')[0] == {'step': 1, 'train/tokens_per_second': 100.0}


def test_a_killed_and_resumed_run_has_the_metrics_of_one_that_was_not(tmp_path: Path) -> None:
    run(tmp_path / 'whole', 1, 6, speed=100.0)
    run(tmp_path / 'killed', 1, 5, speed=90.0)
    with open(tmp_path / 'killed' / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 6, "train/lo')  # killed in the middle of a line
    run(tmp_path / 'killed', 4, 6, speed=80.0, resume_step=3)  # the last checkpoint was step 3
    whole, killed = (tmp_path / name / 'metrics.jsonl' for name in ('whole', 'killed'))
    assert killed.read_bytes() == whole.read_bytes()
    speeds = [record['train/tokens_per_second'] for record in read_metrics(tmp_path / 'killed' / 'timings.jsonl')]
    assert speeds == [90.0, 90.0, 90.0, 80.0, 80.0, 80.0]


def test_an_evaluation_that_is_done_again_after_resuming_stands_there_once(tmp_path: Path) -> None:
    run(tmp_path, 1, 2, speed=1.0)
    before = (tmp_path / 'metrics.jsonl').read_text()
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.log(2, {'loss': 1.0}, prefix='eval')
    assert (tmp_path / 'metrics.jsonl').read_text() == before
    writer.log(2, {'accuracy': 0.5}, prefix='eval')
    writer.log(3, {'loss': 1.0}, prefix='eval')
    writer.close()
    assert [list(record) for record in read_metrics(tmp_path / 'metrics.jsonl')[3:]] == [
        ['step', 'eval/accuracy'],
        ['step', 'eval/loss'],
    ]


def test_a_fresh_run_in_an_old_folder_keeps_the_old_file_aside(tmp_path: Path) -> None:
    run(tmp_path, 1, 3, speed=1.0)
    old = (tmp_path / 'metrics.jsonl').read_text()
    run(tmp_path, 1, 1, speed=1.0)
    assert len(read_metrics(tmp_path / 'metrics.jsonl')) == 1
    assert (tmp_path / 'metrics.jsonl.old').read_text() == old


def test_records_are_on_disk_before_close(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(1, {'loss': 1.0})
    assert read_metrics(tmp_path / 'metrics.jsonl') == [{'step': 1, 'train/loss': 1.0}]
    writer.close()
    writer.close()


def test_non_finite_values_stay_valid_json_and_leave_the_plot(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(1, {'loss': float('nan'), 'grad_norm': float('inf')})
    writer.log(2, {'loss': 0.5})
    writer.close()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in open(tmp_path / 'metrics.jsonl')]
    assert strict[0] == {'step': 1, 'train/loss': 'nan', 'train/grad_norm': 'inf'}
    assert read_curves(tmp_path) == {'loss': {'train': [(2, 0.5)]}}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('RANK', '1')
    run(tmp_path / 'out', 1, 3, speed=1.0)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['wandb', 'clearml', 'mlflow', 'swanlab'])
def test_a_missing_package_names_the_extra_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(SettingsError, match=rf"pip install 'align-anything\[{name}\]'"):
        MetricsWriter(tmp_path, log_type=name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match='none of: tensorboard'):
        check_tracker('tensorbord')


def test_tensorboard_scalars_and_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    for first, last, resume in ((1, 4, None), (3, 4, 2)):
        writer = MetricsWriter(tmp_path, 'tensorboard', settings={'train_cfgs': {'seed': 42}}, resume_step=resume)
        for step in range(first, last + 1):
            writer.log(step, {'loss': step + first / 10})
        writer.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    # Steps 3 and 4 of the first run (3.1, 4.1) are purged; the resumed run's 3.3 and 4.3 stand.
    points = [(point.step, round(make_ndarray(point.tensor_proto).item(), 3)) for point in events.Tensors('train/loss')]
    assert points == [(1, 1.1), (2, 2.1), (3, 3.3), (4, 4.3)]
    assert 'settings/text_summary' in events.Tags()['tensors']


def test_wandb_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_wandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    for resume in (None, 1):
        settings = {'seed': 1, 'hub_token': 'hf_abc'}
        writer = MetricsWriter(tmp_path, 'wandb', 'project', 'name', settings, resume_step=resume)
        writer.log(2, {'loss': 0.5}, timings={'tokens_per_second': 7})
        writer.close()
    first, second = fake.calls
    assert (first['id'], first['resume']) == (None, None)
    assert (second['id'], second['resume']) == ('run-1', 'allow')
    assert first['config'] == {'seed': 1}  # the token stays here
    assert first['settings'].values['x_disable_meta']
    assert fake.logged[0] == {'step': 2, 'train/loss': 0.5, 'train/tokens_per_second': 7.0}


def test_wandb_without_a_login_is_a_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_wandb()

    def refuse(**_: object) -> None:
        raise fake.Error('api_key not configured')

    fake.init = refuse
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    with pytest.raises(SettingsError, match='api_key not configured.*wandb login'):
        MetricsWriter(tmp_path, 'wandb')


def test_clearml_series_share_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[tuple] = []
    inits: list[dict] = []

    class Task:
        id = 'task-1'

        @classmethod
        def init(cls, **options: object) -> Task:
            inits.append(options)
            return cls()

        def connect_configuration(self, settings: dict, name: str) -> None:
            assert (settings, name) == ({'seed': 1}, 'settings')

        def set_initial_iteration(self, iteration: int) -> None:
            assert iteration == 0

        def get_logger(self) -> Task:
            return self

        def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
            scalars.append((title, series, value, iteration))

        def close(self) -> None:
            scalars.append(('closed',))

    monkeypatch.setitem(sys.modules, 'clearml', types.SimpleNamespace(Task=Task))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    for resume in (None, 3):
        writer = MetricsWriter(tmp_path, 'clearml', settings={'seed': 1}, resume_step=resume)
        writer.log(4, {'loss': 0.5}, prefix='eval')
        writer.close()
    assert scalars[:2] == [('loss', 'eval', 0.5, 4), ('closed',)]
    assert [options['continue_last_task'] for options in inits] == [False, 'task-1']
    assert not inits[0]['auto_connect_arg_parser']


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = TrainingConsole(total_steps=100, console=Console(file=io.StringIO(), force_terminal=False))
    for step in range(1, 11):
        console.advance(step)
    console.report(10, {'loss': 1.25, 'learning_rate': 2e-5, 'tokens_per_second': 12345.6, 'padding': 0.031})
    console.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('[align-anything] step 10/100 · eta ')
    assert lines[0].endswith('loss 1.2500 · lr 2.0e-05 · 12,346 tokens/s · padding 3.1%')


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    console = TrainingConsole(
        total_steps=4, start_step=2, console=Console(file=screen, force_terminal=True, width=150, color_system=None)
    )
    console.report(3, {'loss': 0.5, 'peak_memory': 3 * 2**29})
    console.advance(4)
    console.close()
    console.close()
    text = screen.getvalue()
    assert '2/4' in text and '4/4' in text and 'loss 0.5000 · peak 1.5 GiB' in text


@pytest.mark.parametrize('width', [60, 80])
def test_however_narrow_the_terminal_progress_is_seen_and_numbers_give_way(width: int) -> None:
    screen = io.StringIO()
    console = TrainingConsole(
        total_steps=12000, console=Console(file=screen, force_terminal=True, width=width, color_system=None)
    )
    console.report(1234, {'loss': 0.5, **{f'reward_of_a_long_name_{number}': 0.25 for number in range(20)}})
    console.close()
    lines = [line.rsplit('\r', 1)[-1].removeprefix('\x1b[2K') for line in screen.getvalue().splitlines()]
    told = [line for line in lines if 'loss' in line]
    assert told and all(
        re.search(r'step .*1234/12000 eta [\d:]+ loss 0.5000', line) and len(line) <= width for line in told
    )


def test_formats() -> None:
    assert [format_duration(value) for value in (5.9, 65, 3723)] == ['0:05', '1:05', '1:02:03']
    assert format_values({'grad_norm': 1.0}) == 'grad_norm 1.0000'
    assert peak_memory() > 2**20


def fake_wandb() -> types.SimpleNamespace:
    """The few calls of wandb that the tracker makes, recorded."""
    calls: list[dict] = []
    logged: list[dict] = []

    class Run:
        id = 'run-1'

        def define_metric(self, *_: object, **__: object) -> None:
            pass

        def log(self, values: dict) -> None:
            logged.append(values)

        def finish(self) -> None:
            pass

    def init(**options: object) -> Run:
        calls.append(options)
        return Run()

    return types.SimpleNamespace(
        init=init,
        calls=calls,
        logged=logged,
        Error=type('Error', (Exception,), {}),
        Settings=lambda **values: types.SimpleNamespace(values=values),
    )


def test_loads_of_experts_are_in_the_metrics_and_not_on_the_console(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Models have hundreds of experts."""
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    told = succeed(sft(tmp_path / 'out', tiny('qwen3_moe'), rows, max_steps=1))
    (record,) = lines(tmp_path / 'out' / 'metrics.jsonl')
    assert sum(value for name, value in record.items() if 'expert_load' in name) == pytest.approx(1.0)
    assert 'router_loss' in told and 'expert_load' not in told
