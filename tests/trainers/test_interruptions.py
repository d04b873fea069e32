"""What ends a run from outside: Ctrl-C, a port in use, a full disk, a folder that cannot be written. One line each."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from align_anything.algorithms.base import find_algorithm
from align_anything.trainers.loops.offline import OfflineLoop
from tests.trainers.runs import Ended, run, sft, succeed, text_rows, write_rows

Settings = Callable[..., list[str]]


@pytest.fixture(scope='module')
def settings(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp('inputs')
    rows, held_out = (write_rows(folder / name, text_rows(12)) for name in ('rows.jsonl', 'held_out.jsonl'))

    def make(output: Path, *more: object, evaluate: bool = False, **changes: object) -> list[str]:
        evaluation = {'eval_datasets': held_out, 'eval_template': 'Instruction'} if evaluate else {}
        return sft(output, tiny('llama'), rows, *more, **{**evaluation, **changes})

    return make


def told(ended: Ended) -> str:
    """The one line in which a run says why it ended."""
    assert 'Traceback' not in ended.output, ended.output
    [line] = [line for line in ended.output.splitlines() if any(word in line for word in ('WARNING', 'ERROR', '- '))
              and 'Error:' not in line]  # fmt: skip
    return line


def presses_ctrl_c(rank: int) -> None:
    """In step 3 of rank 0, as a terminal does: data workers get it too."""
    inner = OfflineLoop._step

    def step(self, loaded):
        if rank == 0 and self.progress.step + 1 == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self, loaded)

    OfflineLoop._step = step


def test_ctrl_c_saves_a_checkpoint_and_ends_all_ranks_with_130(settings: Settings, tmp_path: Path) -> None:
    ended = run(settings(tmp_path, num_workers=1, per_device_train_batch_size=1), 2, before=presses_ctrl_c)
    assert ended[0].code == 130, ended[0].output
    assert 'stopped by Ctrl-C after step 3; go on with --resume auto' in told(ended[0])
    assert [path.name for path in tmp_path.glob('slice_*')] == ['slice_3']
    again = settings(tmp_path, '--resume', num_workers=1, per_device_train_batch_size=1)
    assert 'after step 3 of 6' in succeed(again, 2)


def test_ctrl_c_before_the_first_step_and_a_second_one(settings: Settings, tmp_path: Path) -> None:
    def while_loading(rank: int) -> None:
        from align_anything.trainers.runs import token_models

        # As in a terminal: what a shell starts in the background ignores Ctrl-C, the tests with it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        token_models.load_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)

    [ended] = run(settings(tmp_path / 'one'), before=while_loading)
    assert ended.code == 130 and 'stopped by Ctrl-C; nothing was saved' in told(ended), ended.output

    def twice(rank: int) -> None:
        def step(self, loaded):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # two that come at once are one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
            raise AssertionError('the second one was not heard')

        OfflineLoop._step = step

    [ended] = run(settings(tmp_path / 'two'), before=twice)
    assert ended.code == 130 and 'stopped by Ctrl-C; nothing was saved' in told(ended), ended.output


def test_a_port_in_use(settings: Settings, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]

        def launched(rank: int) -> None:
            import torch.distributed as dist

            dist.destroy_process_group()
            os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))

        [ended] = run(settings(tmp_path), before=launched)
    assert ended.code == 2, ended.output
    assert f'port {port} of 127.0.0.1 is in use by another process' in told(ended) and '--master_port' in told(ended)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('error', [full, lambda: SafetensorError('I/O error: No space left on device (os error 28)')])
def test_a_disk_that_is_full_at_a_checkpoint(settings: Settings, tmp_path: Path, error: Callable[[], Any]) -> None:
    def before(rank: int) -> None:
        from align_anything.trainers.runs import token_models

        def export_model(model: Any, state: Any, folder: Path, **_: Any) -> None:
            (folder / 'config.json').write_text('{"a": 123}')
            raise error()

        token_models.export_model = export_model

    [ended] = run(settings(tmp_path, save_interval=2, save_total_limit=1), before=before)
    assert ended.code == 2, ended.output
    line = ended.output[ended.output.index('CheckpointError') :]
    assert f'the checkpoint {tmp_path}/slice_2 is not complete: after 10 bytes of it' in line
    assert 'the disk is full' in line and 'bytes are free' in line and 'Traceback' not in ended.output
    assert list(tmp_path.glob('slice_*')) == []


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (full(), 'the disk is full'),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), 'there/metrics.jsonl'),
            'there/metrics.jsonl cannot be written',
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'there/metrics.jsonl'), 'Permission denied'),
    ],
)
def test_a_disk_that_takes_no_metrics(settings: Settings, tmp_path: Path, error: OSError, words: str) -> None:
    def before(rank: int) -> None:
        from align_anything.reporting.metrics import StepFile

        def append(self, step, values):
            raise error

        StepFile.append = append

    [ended] = run(settings(tmp_path), before=before)
    assert ended.code == 2 and words in ended.output and 'Traceback' not in ended.output, ended.output


def test_another_error_of_the_system_is_not_taken_for_one_of_the_disk(settings: Settings, tmp_path: Path) -> None:
    def before(rank: int) -> None:
        def step(self, loaded):
            raise OSError(errno.ECONNRESET, 'reset')

        OfflineLoop._step = step

    [ended] = run(settings(tmp_path), before=before)
    assert ended.code == 1 and 'Traceback' in ended.output


@pytest.mark.parametrize('setting', ['output_dir', 'cache_dir'])
def test_a_folder_that_cannot_be_written(settings: Settings, tmp_path: Path, setting: str) -> None:
    readonly = tmp_path / 'readonly'

    def before(rank: int) -> None:
        from align_anything.core import files

        inner = files.TemporaryFile

        def temporary(dir: Path):
            if dir == readonly:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return inner(dir=dir)

        files.TemporaryFile = temporary

    [ended] = run(settings(tmp_path / 'out', **{setting: readonly}), before=before)
    assert ended.code == 2, ended.output
    assert f'logger_cfgs.{setting}: {readonly} cannot be written to' in told(ended)


def loads_nothing(rank: int) -> None:
    from align_anything.trainers.runs import token_models

    def load_model(*_: Any, **__: Any) -> None:
        raise AssertionError('weights were read before the mistake was found')

    token_models.load_model = load_model


STEPS = {'eval_strategy': 'steps', 'eval_interval': 7}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'save_best': 'los'}, "gives no 'los'. Did you mean 'loss'? It gives loss."),
        ({'save_best': 'reward_accuracy'}, "an evaluation of this run gives no 'reward_accuracy'"),
        ({'save_best': 'loss', **STEPS}, 'eval_interval = 7, but the run has 6 optimizer steps'),
        ({'early_stopping_patience': 2, **STEPS}, 'so it is never evaluated'),
    ],
)
@pytest.mark.parametrize('dry', [False, True])
def test_an_evaluation_that_cannot_be_gone_by(
    settings: Settings, tmp_path: Path, changes: dict[str, Any], words: str, dry: bool
) -> None:
    more = ['--dry_run'] if dry else []
    [ended] = run(
        settings(tmp_path, *more, evaluate=True, **{'eval_strategy': 'epoch', **changes}), before=loads_nothing
    )
    assert ended.code == 2 and words in told(ended), ended.output


def test_a_run_too_short_to_be_evaluated_says_so(settings: Settings, tmp_path: Path) -> None:
    output = succeed(settings(tmp_path, evaluate=True, **STEPS))
    assert output.count('so it is never evaluated. Lower eval_interval') == 1
    assert 'never evaluated' not in succeed(settings(tmp_path / 'b', evaluate=True, **{**STEPS, 'eval_interval': 6}))


@pytest.mark.parametrize(
    ('name', 'metric', 'words'),
    [
        ('rm', 'reward_acuracy', "Did you mean 'reward_accuracy'?"),
        ('grpo', 'loss', 'It gives reward, response_length, truncated, repetition.'),
    ],
)
def test_the_metrics_of_other_algorithms(
    settings: Settings, tmp_path: Path, name: str, metric: str, words: str
) -> None:
    rows = write_rows(tmp_path / 'pairs.jsonl', [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}] * 4)
    online = {'reward_functions': '[format]', 'max_new_tokens': 4, 'num_generations': 2} if name == 'grpo' else {}
    data = {f'{role}_{key}': value for role in ('train', 'eval')
            for key, value in (('datasets', rows), ('template', 'Preference'))}  # fmt: skip
    given = settings(tmp_path / 'out', eval_strategy='epoch', save_best=metric, **data, **online)
    [ended] = run(given, before=loads_nothing, algorithm=find_algorithm(name))
    assert ended.code == 2 and words in told(ended), ended.output


def test_what_online_evaluations_give_is_what_was_said() -> None:
    import torch

    from align_anything.reporting.online_report import names_of_numbers, numbers_of
    from align_anything.rollouts.experience import Rollout

    for names in (['a'], ['a', 'b']):
        told = numbers_of(Rollout([], {name: torch.zeros(0) for name in names}, torch.zeros(0)))
        assert names_of_numbers(names) == [
            name for name in told if name.split('/')[0] not in ('responses', 'abstained')
        ]
