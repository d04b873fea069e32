"""MLflow and SwanLab get what the run measures; a resumed run goes on where it was filed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import SettingsError
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.trackers.mlflow import name_of
from tests.trainers.test_completions import CLIP, NASTY, conversation, rollout_of, shown

SETTINGS = {'train_cfgs': {'seed': 1, 'hub_token': 'hf_abc'}, 'data_cfgs': {'kwargs': {'a@b': 'x' * 7000}}}


class MlflowException(Exception):
    """What the package raises for everything."""


class FakeMLflow:
    """The calls of `MlflowClient` that the tracker makes, recorded; `refuses` names those that fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.refuses = refuses
        self.experiments: dict[str, Any] = {}
        record = lambda kind: lambda *values: (kind, *values)  # noqa: E731
        modules = {
            'mlflow': types.SimpleNamespace(MlflowClient=lambda: self),
            'mlflow.exceptions': types.SimpleNamespace(MlflowException=MlflowException),
            'mlflow.entities': types.SimpleNamespace(Metric=record('metric'), Param=record('param')),
            'mlflow.utils.validation': types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=2),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **options: Any) -> Any:
            self.calls.append((name, values, options))
            if name in self.refuses:
                raise MlflowException(f'{name} is refused')
            return types.SimpleNamespace(
                info=types.SimpleNamespace(run_id='run-1'), wait=lambda: self.calls.append(('wait', (), {}))
            )

        return call

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = types.SimpleNamespace(experiment_id='7')
        return '7'

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [call[1:] for call in self.calls if call[0] == name]


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(monkeypatch)
    for resume, seed in ((None, 1), (1, 2)):
        settings = SETTINGS | {'more': {'seed': seed}}
        writer = MetricsWriter(tmp_path, 'mlflow', 'project', 'name', settings, resume_step=resume)
        writer.log(2, {'loss': 0.5, 'a@b/../reward': float('nan')}, timings={'tokens_per_second': 7})
        writer.close()
    assert fake.of('create_run') == [(('7',), {'run_name': 'name'})], 'one run, in the experiment of the project'
    assert fake.of('update_run') == [(('run-1',), {'status': 'RUNNING'})]
    batches = [options for _, options in fake.of('log_batch')]
    # Parameters cannot change in MLflow: those of the first start only, two a call here, without what is too long.
    assert [batch['params'] for batch in batches if 'params' in batch] == [
        [('param', 'train_cfgs.seed', '1'), ('param', 'more.seed', '1')]
    ]
    sent = [batch for batch in batches if 'metrics' in batch]
    assert len(sent) == 2 and all(batch['synchronous'] is False for batch in sent)
    names = [(name, step) for _, name, _, _, step in sent[0]['metrics']]
    assert names == [('train/loss', 2), ('train/a_b/_/reward', 2), ('train/tokens_per_second', 2)]
    files = [values for values, _ in fake.of('log_text')]
    assert [name for _, _, name in files] == ['settings.yaml'] * 2
    assert 'seed: 2' in files[1][1] and 'hf_abc' not in files[1][1]
    assert [name for name, *_ in fake.calls[-2:]] == ['wait', 'set_terminated']


@pytest.mark.parametrize(
    ('name', 'taken'),
    [
        ('train/loss', 'train/loss'),
        ('a/../b', 'a/_/b'),
        ('/a//b/.', '_/a/_/b/_'),
        ('é+?', '___'),
        ('v1.5: x', 'v1.5: x'),
    ],
)
def test_names_that_mlflow_takes(name: str, taken: str) -> None:
    assert name_of(name) == taken


def test_mlflow_has_a_table_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(monkeypatch)
    shown(tmp_path, (2, rollout_of(conversation(), conversation(('video', CLIP)))), log_type='mlflow')
    ((_, table),) = fake.of('log_table')
    assert table['artifact_file'] == 'completions/step 00000002/completions.json'
    assert list(table['data']) == ['prompt', 'response', 'reward', 'reward/right', 'reward/brief']
    assert table['data']['response'] == ['yes', f'{NASTY} no', 'yes', NASTY]
    assert table['data']['reward/right'] == [1.0, 2.0, 3.0, 4.0]
    ((values, options),) = fake.of('log_image')
    assert values[1].size[0] == 3 * 50 and options['artifact_file'].endswith('prompt 2.png')


def test_mlflow_that_cannot_start_is_a_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMLflow(monkeypatch, refuses=('create_run',))
    with pytest.raises(SettingsError, match='create_run is refused.*MLFLOW_TRACKING_URI'):
        MetricsWriter(tmp_path, 'mlflow')


def test_mlflow_that_fails_later_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeMLflow(monkeypatch, refuses=('log_table', 'set_terminated'))
    shown(tmp_path, (2, rollout_of(conversation())), log_type='mlflow')
    told = capsys.readouterr().err
    assert 'did not take the completions of step 2' in told and 'metrics.jsonl has them' in told
    assert fake.of('set_terminated')


def fake_swanlab(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The few calls of swanlab that the tracker makes, recorded."""
    calls: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, Any], int]] = []
    run = types.SimpleNamespace(
        id='run-1', log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append(({}, -1))
    )

    def init(**options: Any) -> Any:
        calls.append(options)
        return run

    fake = types.SimpleNamespace(
        init=init,
        calls=calls,
        logged=logged,
        Settings=lambda **values: values,
        Text=lambda text, caption: (text, caption),
        Image=lambda picture, caption: (picture.size, caption),
    )
    monkeypatch.setitem(sys.modules, 'swanlab', fake)
    error = type('AuthenticationError', (Exception,), {})
    monkeypatch.setitem(sys.modules, 'swanlab.exceptions', types.SimpleNamespace(AuthenticationError=error))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    return fake


def test_swanlab_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_swanlab(monkeypatch)
    for resume in (None, 1):
        writer = MetricsWriter(tmp_path, 'swanlab', 'project', 'name', SETTINGS, resume_step=resume)
        writer.log(2, {'loss': 0.5}, timings={'tokens_per_second': 7})
        writer.close()
    first, second = fake.calls
    assert (first['id'], first['resume'], second['id'], second['resume']) == (None, None, 'run-1', 'allow')
    assert first['config']['train_cfgs'] == {'seed': 1}, 'the token stays here'
    assert not any(first['settings']['probe'].values()) and first['log_dir'] == str(tmp_path / 'swanlab')
    assert fake.logged == [({'train/loss': 0.5, 'train/tokens_per_second': 7.0}, 2), ({}, -1)] * 2


def test_swanlab_has_texts_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_swanlab(monkeypatch)
    shown(tmp_path, (2, rollout_of(conversation(), conversation(('video', CLIP)))), log_type='swanlab')
    logged, step = fake.logged[0]
    assert step == 2 and len(logged['completions']) == 4
    assert logged['completions'][0] == (
        'Is it <b>so</b>?\n\nyes',
        'reward 0.5, reward/right 1, reward/brief -1',
    )
    ((_, caption),) = logged['completions/media']
    assert caption == 'prompt 2'


@pytest.mark.parametrize('error', [RuntimeError, ValueError, ConnectionError, None])
def test_swanlab_without_a_login_is_a_settings_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    fake = fake_swanlab(monkeypatch)
    error = error or sys.modules['swanlab.exceptions'].AuthenticationError

    def refuse(**_: Any) -> None:
        raise error('no TTY is available')

    fake.init = refuse
    with pytest.raises(SettingsError, match='no TTY is available.*swanlab login'):
        MetricsWriter(tmp_path, 'swanlab')
