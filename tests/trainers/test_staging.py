"""Checkpoints written while training goes on, and disks that are full: a resumed run is that of one without either."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.leaves import find_run
from align_anything.engines import staging
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.fsdp_engine import FSDPEngine
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.loops.online import OnlineLoop
from tests.trainers.runs import Ended, die, run, sft, succeed, text_rows, write_rows
from tests.trainers.test_resume import assert_same, checkpoints_in, killed

pytestmark = pytest.mark.extended

RANKS, STEPS = 2, 8
SAVES = {'save_interval': 2, 'save_total_limit': 2}
ENGINES: dict[str, dict[str, Any]] = {
    'z0': {'ds_cfgs': 'ds_z0_config.json'},
    'z2 in bf16': {'ds_cfgs': 'ds_z2_config.json', 'bf16': True},
    'z2': {'ds_cfgs': 'ds_z2_config.json'},
    'z3 with adapters': {'ds_cfgs': 'ds_z3_config.json', 'use_lora': True, 'r': 4, 'lora_dropout': 0.2},
    'fsdp': {'engine': 'fsdp', 'ds_cfgs': None, 'bf16': True},
}
Settings = Callable[..., list[str]]


@pytest.fixture(scope='module')
def settings(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`settings(output, 'z2', **changes)`: a run of 8 steps with dropout."""
    folder = tmp_path_factory.mktemp('inputs')
    model = shutil.copytree(tiny('opt'), folder / 'opt')
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'dropout': 0.1}))
    rows = write_rows(folder / 'rows.jsonl', text_rows(RANKS * STEPS))

    def make(output: Path, engine: str, *more: object, **changes: object) -> list[str]:
        shape = {'per_device_train_batch_size': 1, 'num_workers': 0}
        return sft(output, model, rows, *more, **{**shape, **SAVES, **ENGINES[engine], **changes})

    return make


@pytest.fixture(scope='module')
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that nothing interrupted, and whose checkpoints were written at once."""
    made: dict[str, Path] = {}

    def folder(engine: str) -> Path:
        if engine not in made:
            made[engine] = tmp_path_factory.mktemp('whole') / 'run'
            succeed(settings(made[engine], engine), RANKS)
        return made[engine]

    return folder


@pytest.fixture
def memory(tmp_path: Path) -> dict[str, str]:
    (tmp_path / 'memory').mkdir()
    return {'checkpoint_staging_dir': str(tmp_path / 'memory')}


def before_copies(act: Callable[[int, Path], None]) -> Callable[[int], None]:
    """Calls `act` with the rank and the file, in the thread that writes, before it writes one."""

    def before(rank: int) -> None:
        inner = staging.copy_durably

        def copy(source: Any, target: Path) -> None:
            act(rank, target)
            inner(source, target)

        staging.copy_durably = copy

    return before


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not there():
        assert time.monotonic() < end, 'what is waited for does not come'
        time.sleep(0.01)


@pytest.mark.parametrize('engine', ENGINES)
def test_a_killed_run_goes_on_to_the_same_bits(
    engine: str, settings: Settings, whole: Callable[[str], Path], memory: dict[str, str], tmp_path: Path
) -> None:
    """It is killed in step 6, when slice_2 is complete, for there is only one under way."""
    run_folder = tmp_path / 'run'
    killed(settings(run_folder, engine, **memory), dies_in_step_6)
    newest = checkpoints_in(run_folder)[-1]
    assert newest in ('slice_2', 'slice_4')
    assert not [*(tmp_path / 'memory').iterdir()]
    written = succeed(settings(run_folder, engine, '--resume', 'auto', **memory), RANKS)
    assert f'resumed from {run_folder}/{newest} after' in written
    assert_same(whole(engine), run_folder)
    assert checkpoints_in(run_folder) == checkpoints_in(whole(engine)) == ['slice_4', 'slice_6', 'slice_end']
    assert [path.name for path in run_folder.glob('.slice*')] == []


def dies_in_step_6(rank: int) -> None:
    inner = OfflineLoop._step

    def step(self: OfflineLoop, loaded: Any) -> bool:
        if rank == 1 and self.progress.step + 1 == 6:
            die()
        return inner(self, loaded)

    OfflineLoop._step = step


def test_steps_go_on_while_a_checkpoint_is_written(settings: Settings, memory: dict[str, str], tmp_path: Path) -> None:
    """The thread of rank 1 writes slice_2 only once rank 0 is in step 4; the next one waits for it."""
    output, begun = tmp_path / 'run', tmp_path / 'step 4'

    def before(rank: int) -> None:
        def act(own: int, target: Path) -> None:
            if own == 1 and '.slice_2.partial' in str(target):
                wait_for(begun.exists)

        before_copies(act)(rank)
        inner = OfflineLoop._step

        def step(self: OfflineLoop, loaded: Any) -> bool:
            if rank == 0 and self.progress.step + 1 == 4:
                assert checkpoints_in(output) == [] and (output / '.slice_2.partial').is_dir()
                begun.touch()
            return inner(self, loaded)

        OfflineLoop._step = step

    written = succeed(settings(output, 'z2', **memory), RANKS, before=before)
    assert 'checkpoint, being written: ' in written and f'checkpoint: {output}/slice_2' in written
    assert checkpoints_in(output) == ['slice_4', 'slice_6', 'slice_end']


def test_the_next_checkpoint_and_the_end_wait_for_the_one_before(
    settings: Settings, memory: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / 'run'
    ended = run(
        settings(output, 'z2', save_interval=1, save_total_limit=9, max_steps=4, **memory),
        RANKS,
        before=before_copies(lambda rank, target: time.sleep(0.5 * rank)),
    )
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert f'waiting for the checkpoint {output}/slice_1, which is still being written' in ended[1].output
    assert checkpoints_in(output) == ['slice_1', 'slice_2', 'slice_3', 'slice_end']


def test_online_and_stopped_by_sigterm(tiny: Callable[..., Path], memory: dict[str, str], tmp_path: Path) -> None:
    """A run of GRPO is what it is without staging, and what it has saved as it is stopped is complete as it ends."""
    (tmp_path / 'rewards.py').write_text(
        'def brief(completions):\n    return [float(item.length) for item in completions]\n'
    )
    rows, grpo = write_rows(tmp_path / 'rows.jsonl', text_rows(12)), find_run('text_to_text', 'grpo')[1]
    online = {'num_generations': 2, 'per_device_prompt_batch_size': 1, 'per_device_train_batch_size': 2}
    online |= {
        'reward_functions': f'[{tmp_path}/rewards.py:brief]',
        'max_new_tokens': 5,
        'max_steps': 6,
        'num_workers': 0,
    }

    def argv(name: str, *more: object, **changes: object) -> list[str]:
        return sft(tmp_path / name, tiny('qwen2'), rows, *more, **{**online, **SAVES, **changes})

    def before(rank: int) -> None:
        inner = OnlineLoop._step

        def step(self: OnlineLoop, loaded: Any) -> bool:
            if rank == 1 and self.progress.step + 1 == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(self, loaded)

        OnlineLoop._step = step

    succeed(argv('whole'), RANKS, algorithm=grpo)
    ended = run(argv('run', **memory), RANKS, before=before, algorithm=grpo)
    assert [one.code for one in ended] == [143] * RANKS, ended[0].output
    assert checkpoints_in(tmp_path / 'run') == ['slice_2', 'slice_3']
    written = succeed(argv('run', '--resume', 'auto', **memory), RANKS, algorithm=grpo)
    assert f'resumed from {tmp_path}/run/slice_3 after' in written
    assert_same(tmp_path / 'whole', tmp_path / 'run')
    assert checkpoints_in(tmp_path / 'run') == ['slice_3', 'slice_4', 'slice_end']


def test_killed_in_the_middle_of_writing(
    settings: Settings, whole: Callable[[str], Path], memory: dict[str, str], tmp_path: Path
) -> None:
    """Rank 0 has half of a file of slice_4 on the disk; the older checkpoint is not deleted yet."""
    output = tmp_path / 'run'

    def act(rank: int, target: Path) -> None:
        if rank == 0 and '.slice_4.partial' in str(target) and target.name == 'random_rank0.pt':
            target.write_bytes(b'half')
            wait_for((output / 'step 6').exists)
            die()

    def before(rank: int) -> None:
        before_copies(act)(rank)
        inner = OfflineLoop._step

        def step(self: OfflineLoop, loaded: Any) -> bool:
            if self.progress.step + 1 == 6:
                (output / 'step 6').touch()
            return inner(self, loaded)

        OfflineLoop._step = step

    killed(settings(output, 'z2', save_total_limit=1, **memory), before)
    assert checkpoints_in(output) == ['slice_2'] and (output / '.slice_4.partial').is_dir()
    succeed(settings(output, 'z2', '--resume', 'auto', **memory), RANKS)
    assert_same(whole('z2'), output)
    assert [path.name for path in output.glob('.slice*')] == []


def mounted(folder: Path, kib: int) -> None:
    """Puts a disk of so many KiB there. Skips the test where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'small', folder], capture_output=True)
    if made.returncode:
        pytest.skip(f'no disk can be mounted here: {made.stderr.decode().strip()}')


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes a folder of this name that is a disk of its own, of so many KiB."""
    made = []

    def make(name: str, kib: int) -> Path:
        mounted(tmp_path / name, kib)
        made.append(tmp_path / name)
        return tmp_path / name

    yield make
    for folder in made:
        subprocess.run(['umount', '-l', folder], check=True)


def told_once(ended: list[Ended]) -> str:
    """The message with which all ranks ended, and which the first one told."""
    assert [one.code for one in ended] == [2] * RANKS, '\n'.join(one.output for one in ended)
    assert not any('Traceback' in one.output for one in ended), ended
    assert 'CheckpointError' not in ended[1].output
    [line] = [line for line in ended[0].output.splitlines() if 'is not complete' in line]
    return line


@pytest.mark.parametrize('staged', [False, True])
@pytest.mark.parametrize('engine', ['z2', 'z3 with adapters', 'fsdp'])
def test_the_disk_of_all_ranks_is_full(
    engine: str,
    staged: bool,
    settings: Settings,
    whole: Callable[[str], Path],
    small: Callable[[str, int], Path],
    memory: dict[str, str],
    tmp_path: Path,
) -> None:
    size = sum(path.stat().st_size for path in (whole(engine) / 'slice_4').rglob('*')) // 1024
    output, how = small('run', size * 8 // 5), memory if staged else {}
    line = told_once(run(settings(output, engine, **how), RANKS))
    assert f'the checkpoint {output}/slice_4 is not complete: on rank' in line
    assert 'the disk is full' in line and f'{output}/.slice_4.partial' in line
    assert checkpoints_in(output) == ['slice_2']
    shutil.rmtree(output / '.slice_4.partial')
    subprocess.run(['mount', '-o', f'remount,size={size * 9}k', output], check=True)
    succeed(settings(output, engine, '--resume', 'auto', **how), RANKS)
    assert_same(whole(engine), output)


@pytest.mark.parametrize('engine', ['z2', 'fsdp'])
def test_the_disk_of_one_rank_is_full(
    engine: str, settings: Settings, whole: Callable[[str], Path], small: Callable[[str, int], Path], tmp_path: Path
) -> None:
    """Rank 1 has a small one where it writes its state of slice_4, as a host has that runs into a limit of its own."""
    small('probe', 4)
    output = tmp_path / 'run'

    def before(rank: int) -> None:
        for kind in (DeepSpeedEngine, FSDPEngine):

            def save_state(self: Any, folder: Path, inner: Callable[..., None] = kind.save_state) -> None:
                if rank == 1 and '.slice_4.partial' in str(folder):
                    apart()
                    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16k', 'small', folder], check=True)
                inner(self, folder)

            kind.save_state = save_state

    line = told_once(run(settings(output, engine), RANKS, before=before))
    assert f'the checkpoint {output}/slice_4 is not complete: on rank 1 (' in line and 'the disk is full' in line
    assert f'{output}/.slice_4.partial/state' in line and 'So it is' not in line
    assert checkpoints_in(output) == ['slice_2']
    succeed(settings(output, engine, '--resume', 'auto'), RANKS)
    assert_same(whole(engine), output)


@pytest.mark.parametrize('engine', ['z2', 'fsdp'])
def test_the_memory_of_one_rank_is_full(
    engine: str,
    settings: Settings,
    whole: Callable[[str], Path],
    small: Callable[[str, int], Path],
    memory: dict[str, str],
    tmp_path: Path,
) -> None:
    small('probe', 4)
    output = tmp_path / 'run'

    def before(rank: int) -> None:
        if rank == 1:
            apart()
            how = ['mount', '-t', 'tmpfs', '-o', 'size=16k', 'small', memory['checkpoint_staging_dir']]
            subprocess.run(how, check=True)

    line = told_once(run(settings(output, engine, **memory), RANKS, before=before))
    assert f'the checkpoint {output}/slice_2 is not complete: on rank 1 (' in line
    assert f'{memory["checkpoint_staging_dir"]}/align-anything-' in line and 'the disk is full' in line
    succeed(settings(output, engine, '--resume', 'auto', **memory), RANKS)
    assert_same(whole(engine), output)


def apart() -> None:
    """Lets what this process mounts be seen by itself alone."""
    clone_newns, private = 0x20000, 0x4C000
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(clone_newns) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(b'none', b'/', None, private, None) == 0, os.strerror(ctypes.get_errno())
