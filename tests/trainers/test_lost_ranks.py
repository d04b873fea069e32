"""Ranks, hosts and networks that die during a run: all hosts end, each says why, and the same command goes on.

The hosts are namespaces of this machine. What a rank knows of another is in tests/engines/test_watch.py.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.hosts import Host
from tests.harness.ranks import free_port
from tests.trainers.test_resume import assert_same
from tests.trainers.test_several_nodes import (
    ENVIRONMENT,
    PATIENCE,
    Hosts,
    alone,
    ended,
    hosts,
    logs,
    started,
    with_torchrun,
    without_ssh,
)

__all__ = ['alone', 'hosts']

pytestmark = [pytest.mark.extended, pytest.mark.slow, pytest.mark.timeout(1200)]

MINUTE = 60.0
SAVES = ('--save_interval', '5', '--save_total_limit', '2', '--resume', 'auto')
OUTPUT = Path('output/sft')
KILLED, SILENT = 'was killed, or crashed: it ended without a word', 'has not been heard of for 35 seconds'


def rank_of(processes: Sequence[psutil.Process], number: int) -> psutil.Process:
    """The rank of this number among processes."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if process.environ().get('RANK') == str(number):
                found.append(process)
    # Its data workers have its environment too.
    return min(found, key=lambda process: (process.create_time(), process.pid))


def until_it_saved(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + PATIENCE
    while not (OUTPUT / 'slice_5').is_dir():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.01)


def told(number: int) -> str:
    """The one message of the command of this number, of why its run ended."""
    text = Path(f'output-{number}.log').read_text()
    assert text.count('ERROR TrainingError:') == 1, text
    return text[text.index('ERROR TrainingError:') :].split('\n')[1]


def kill_rank(hosts: Hosts, number: int) -> None:
    rank_of(hosts[number].processes(), number).kill()


def kill_host(hosts: Hosts, number: int) -> None:
    """No word of its end comes through."""
    hosts[number].cut_off()
    for process in hosts[number].processes():
        with suppress(psutil.Error):
            process.kill()


def cut(hosts: Hosts, number: int) -> None:
    hosts[number].cut_off()


@pytest.mark.parametrize(('lose', 'number', 'commands', 'says'), [
    pytest.param(kill_rank, 1, with_torchrun, {0: f'rank 1 on node-2 .* {KILLED}'}, id='rank-torchrun'),
    pytest.param(kill_rank, 0, without_ssh, {1: f'rank 0 on node-1 .* {KILLED}'}, id='rank-deepspeed'),
    pytest.param(kill_host, 1, without_ssh, {0: f'rank 1 on node-2 .* {SILENT}'}, id='host-deepspeed'),
    pytest.param(kill_host, 0, with_torchrun, {1: f'rank 0 on node-1 .* {SILENT}'}, id='host-torchrun'),
    pytest.param(
        cut, 1, with_torchrun,
        {0: f'rank 1 on node-2 .* {SILENT}', 1: f'rank 0 on node-1 .* {SILENT}'}, id='network-torchrun',
    ),
])  # fmt: skip
def test_all_hosts_end_and_the_same_command_goes_on(
    alone: Path,
    hosts: Hosts,
    lose: Callable[[Hosts, int], None],
    number: int,
    commands: Callable[..., list[list[str]]],
    says: dict[int, str],
) -> None:
    argv = commands(hosts, *SAVES)
    with started(*argv) as processes:
        until_it_saved(processes)
        lose(hosts, number)
        at = time.monotonic()
        codes = ended(processes)
        took = time.monotonic() - at
        assert all(codes), codes
    print(f'ended {took:.1f} s after the loss')
    assert took < MINUTE
    for own, sentence in says.items():
        assert re.match(sentence, told(own)), told(own)
    nothing_runs_on(*hosts)
    hosts[number].cut_off(False)
    with started(*argv) as processes:
        assert ended(processes) == [0, 0]
    assert 'resumed from' in logs()
    assert_same(alone, OUTPUT)


def test_an_output_folder_on_a_disk_of_each_host_is_refused_and_a_cache_there_is_not(alone: Path, hosts: Hosts) -> None:
    _, second = hosts
    for name in ('output', 'cache'):
        Path(name).mkdir()
        subprocess.run(second.command(['mount', '-t', 'tmpfs', 'none', name]), check=True)
    with started(*with_torchrun(hosts)) as processes:
        assert all(ended(processes))
    refusal = 'logger_cfgs.output_dir: what the first of 2 processes writes into output/sft on node-1 is not seen by 1'
    for number in range(2):
        text = Path(f'output-{number}.log').read_text()
        assert text.count(refusal) == 1 and 'of them, on node-2.' in text and 'step 1/' not in text
    subprocess.run(second.command(['umount', 'output']), check=True)
    with started(*with_torchrun(hosts, '--sample_cache_dir', 'cache')) as processes:
        assert ended(processes) == [0, 0]
    assert_same(alone, OUTPUT)


@pytest.mark.parametrize('launcher', ['torchrun', 'deepspeed', 'python'])
def test_a_rank_that_is_killed_on_one_host(alone: Path, launcher: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**ENVIRONMENT, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}.items():
        monkeypatch.setenv(name, value)
    module = 'align_anything.trainers.text_to_text.sft'
    given = ['--config', str(alone / 'settings.yaml'), '--output_dir', 'output/sft', *SAVES]
    port = str(free_port())
    started_by = {
        'torchrun': [['torchrun', '--nproc-per-node', '2', '--master-port', port, '-m', module, *given]],
        'deepspeed': [['deepspeed', '--num_gpus', '2', '--master_port', port, '--module', module, *given]],
        'python': [
            ['env', f'RANK={rank}', f'LOCAL_RANK={rank}', 'WORLD_SIZE=2', 'LOCAL_SIZE=2', 'MASTER_ADDR=127.0.0.1',
             f'MASTER_PORT={port}', 'python', '-m', module, *given]
            for rank in range(2)
        ],
    }  # fmt: skip
    with started(*started_by[launcher]) as processes:
        until_it_saved(processes)
        children = [one for each in processes for one in [psutil.Process(each.pid), *each_child(each)]]
        rank_of(children, 1).kill()
        at = time.monotonic()
        codes = ended(processes)
        assert all(codes) and time.monotonic() - at < MINUTE
    assert re.match(f'rank 1 on {socket.gethostname()} .* {KILLED}', told(0)), told(0)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    with started(*started_by[launcher]) as processes:
        assert not any(ended(processes))
    assert_same(alone, OUTPUT)


def each_child(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def nothing_runs_on(*some: Host) -> None:
    """Data workers look every five seconds whether their rank is there."""
    end = time.monotonic() + 15
    while left := [process for host in some for process in host.processes()]:
        assert time.monotonic() < end, [process.cmdline() for process in left]
        time.sleep(0.1)
