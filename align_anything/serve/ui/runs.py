"""Runs as processes of their own, which outlive the page: started, found again, stopped and taken up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from align_anything.core.errors import SettingsError
from align_anything.core.files import FINAL_NAME, atomic_write_json
from align_anything.serve.ui.paths import Root
from align_anything.serve.ui.preview import Asked, launcher, resolve_in
from align_anything.trainers.runs.output_folder import check_unused

LAUNCH, LOG = 'launch.json', 'log.txt'
RUNNING, FINISHED, STOPPED, FAILED, UNKNOWN = 'running', 'finished', 'stopped', 'failed', 'not started here'
GOES_ON = 'go on with --resume auto'
"""What a run says last that was stopped and left a checkpoint."""
LOG_BYTES = 200_000
SAME_SECONDS = 1.0
"""How far apart two readings of when a process began may lie."""
WIDTH = '140'
"""Columns of the tables in a log."""

_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Launch:
    """How a run was started, kept beside what it writes.

    Attributes:
        pair, algorithm, settings, devices: as `Asked` has them.
        command: the words that were run.
        pid: the process of the launcher.
        began: when that process began, as the system counts.
    """

    pair: str
    algorithm: str
    settings: Sequence[str]
    devices: int | None
    command: Sequence[str]
    pid: int
    began: float

    @property
    def process(self) -> psutil.Process | None:
        """The process of the launcher; None where it has ended."""
        child = _children.get(self.pid)
        if child is not None and child.poll() is not None:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.began) < SAME_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def start(asked: Asked, root: Root) -> Path:
    """Starts a run, by the launcher that the preview shows, and returns the folder that it writes to.

    Raises SettingsError as the command would, for paths outside of `root`, and for a folder that a run writes to.
    """
    cfgs = resolve_in(asked, root).cfgs
    folder = root.inside(cfgs.logger_cfgs.output_dir, 'logger_cfgs.output_dir')
    if state_of(folder) == RUNNING:
        raise SettingsError([f'logger_cfgs.output_dir: a run that goes on writes to {root.short(folder)}.'])
    check_unused(cfgs)
    port = ['--master_port', str(_free_port())]
    words = launcher(asked.pair, asked.algorithm, asked.devices)
    command = [*words[:1], *port, *words[1:], *asked.settings]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, 'ab') as log:
        log.write(f'$ {" ".join(command)}\n'.encode())
        log.flush()
        child = subprocess.Popen(
            [_program(command[0]), *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=root.folder,
            env=environment(),
            # Neither the end of the page nor Ctrl-C in its terminal ends the run.
            start_new_session=True,
        )
    _children[child.pid] = child
    began = psutil.Process(child.pid).create_time()
    launch = Launch(asked.pair, asked.algorithm, list(asked.settings), asked.devices, command, child.pid, began)
    atomic_write_json(folder / LAUNCH, asdict(launch))
    return folder


def resume(folder: Path, root: Root) -> Path:
    """Starts a run again, from its newest checkpoint. Raises SettingsError for one that the page has not started."""
    launch = read_launch(folder)
    if launch is None:
        raise SettingsError([f'{root.short(folder)} was not started here: its command goes on with --resume auto.'])
    settings = _without(launch.settings, ('resume', 'train_cfgs.resume', 'overwrite_output_dir'))
    settings = _without(settings, ('logger_cfgs.overwrite_output_dir', 'load_checkpoint'))
    return start(Asked(launch.pair, launch.algorithm, [*settings, '--resume', 'auto'], launch.devices), root)


def stop(folder: Path) -> int:
    """Asks a run to save a checkpoint and to end, and returns how many of its processes were asked.

    Its ranks alone are: what a launcher does with a signal is to end them before they have saved.
    """
    launch = read_launch(folder)
    process = None if launch is None else launch.process
    if process is None:
        return 0
    ranks = ranks_of(process, launcher(launch.pair, launch.algorithm)[2])
    for rank in ranks or [process]:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGTERM)
    return len(ranks)


def ranks_of(process: psutil.Process, module: str) -> list[psutil.Process]:
    """Returns the processes below a launcher that run a module; not those that these have forked."""
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        for child in process.children():
            found += [child] if _runs(child, module) else ranks_of(child, module)
    return found


def read_launch(folder: Path) -> Launch | None:
    """Returns how the run in a folder was started; None where the page has not started it."""
    try:
        return Launch(**json.loads((folder / LAUNCH).read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        return None


def state_of(folder: Path) -> str:
    """Returns how the run in a folder stands."""
    launch = read_launch(folder)
    final = folder / FINAL_NAME
    if launch is None:
        return FINISHED if final.is_dir() else UNKNOWN
    if launch.process is not None:
        return RUNNING
    if final.is_dir() and final.stat().st_mtime >= launch.began - SAME_SECONDS:
        return FINISHED
    return STOPPED if GOES_ON in _last_start(tail_of(folder)) else FAILED


def tail_of(folder: Path, size: int = LOG_BYTES) -> str:
    """Returns the end of the log of a run, as a terminal would show its lines."""
    try:
        with open(folder / LOG, 'rb') as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            text = log.read().decode(errors='replace')
    except OSError:
        return ''
    # What a progress bar writes over itself counts once.
    return '\n'.join(line.rstrip('\r').rpartition('\r')[2] for line in text.split('\n'))


def last_words(folder: Path) -> str:
    """Returns what a run that failed said last of why."""
    lines = [line for line in _last_start(tail_of(folder)).splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if 'Error' in line and not line.startswith(('[20', ' '))]
    if not errors:
        return lines[-1] if lines else ''
    said = lines[errors[0] :]
    end = next((number for number, line in enumerate(said) if number and not line.startswith(('-', ' '))), len(said))
    return '\n'.join(said[:end])


def output_of(words: Sequence[str], root: Root) -> Iterator[str]:
    """Runs a command in the folder of the page, and yields what it has said so far as it says more.

    Closing the iterator ends the command.
    """
    said = f'$ {" ".join(words)}\n'
    with subprocess.Popen(
        [_program(words[0]), *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=root.folder,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            yield said
            for line in process.stdout:
                said += line.decode(errors='replace')
                yield said
            if process.wait():
                yield f'{said}\nended with code {process.returncode}\n'
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def environment() -> Mapping[str, str]:
    """The environment of what the page runs: its own programs first, and tables as wide as the page shows them."""
    programs = str(Path(sys.executable).parent)
    own = {'PATH': f'{programs}{os.pathsep}{os.environ.get("PATH", "")}', 'PYTHONUNBUFFERED': '1', 'COLUMNS': WIDTH}
    # DeepSpeed guesses, and says so at length, unless it is told that there is no GPU.
    if not any(Path(device).exists() for device in ('/dev/nvidiactl', '/dev/dxg', '/dev/kfd')):
        own['DS_ACCELERATOR'] = os.environ.get('DS_ACCELERATOR', 'cpu')
    return {**os.environ, **own}


def wait(folder: Path, seconds: float) -> str:
    """Returns how a run stands once it has ended, or after so many seconds."""
    end = time.monotonic() + seconds
    while (state := state_of(folder)) == RUNNING and time.monotonic() < end:
        time.sleep(0.2)
    return state


def _runs(process: psutil.Process, module: str) -> bool:
    words = process.cmdline()
    return any(word == '-m' and following == module for word, following in zip(words, words[1:], strict=False))


def _last_start(log: str) -> str:
    return log.rpartition('\n$ ')[2] if '\n$ ' in log else log


def _without(settings: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words of settings without those of some keys."""
    kept, leaving = [], False
    for word in settings:
        if word.startswith('--'):
            leaving = word[2:].partition('=')[0].replace('-', '_') in names
        if not leaving:
            kept.append(word)
    return kept


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]
