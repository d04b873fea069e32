"""docs/multi_node.md on two hosts that are one machine: its commands train as two processes side by side do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.harness.hosts import Host, two_hosts, why_no_hosts
from tests.trainers.runs import lines, sft, succeed, text_rows, write_rows
from tests.trainers.test_resume import assert_same

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'multi_node.md').read_text()
BLOCKS = re.findall(r'```(?:bash|text)\n(.*?)```', PAGE, re.DOTALL)
STEPS = 60
PATIENCE = 800.0
ENVIRONMENT = {
    'DS_ACCELERATOR': 'cpu',
    'HF_HUB_OFFLINE': '1',
    'OMP_NUM_THREADS': '1',
    'TOKENIZERS_PARALLELISM': 'false',
}
SSHD, SSH, PDSH = (shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin') for name in ('sshd', 'ssh', 'pdsh'))

Hosts = tuple[Host, Host]


def block(begin: str) -> str:
    """The one block of the page that begins so, for one process on each node."""
    (found,) = [text for text in BLOCKS if text.startswith(begin)]
    return re.sub(r'(slots=|--nproc-per-node )8', r'\g<1>1', found)


def command(begin: str) -> list[str]:
    return shlex.split(block(begin).replace('\\\n', ' '))


@pytest.fixture(scope='module')
def alone(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes on this machine."""
    folder = tmp_path_factory.mktemp('alone')
    rows = write_rows(folder / 'rows.jsonl', text_rows(4 * STEPS))
    succeed(sft(folder / 'run', tiny('qwen2'), rows, ds_cfgs='ds_z2_config.json', num_workers=1), ranks=2)
    assert len(lines(folder / 'run' / 'metrics.jsonl')) == STEPS
    return folder / 'run'


@pytest.fixture
def hosts(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Two hosts, and in the folder where the test is, the settings of that run."""
    if why := why_no_hosts():
        pytest.skip(f'no second host can be made here: {why}')
    monkeypatch.chdir(tmp_path)
    path = f'{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for name, value in {**ENVIRONMENT, 'PATH': path}.items():
        monkeypatch.setenv(name, value)
    Path('bin').mkdir()
    Path('sft.yaml').write_text((alone / 'settings.yaml').read_text())
    with two_hosts(tmp_path) as made:
        yield made


@contextmanager
def started(*commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Runs commands side by side, and leaves none behind. What they write is in `logs`, which a failure shows."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(f'output-{number}.log', 'wb')) for number in range(len(commands))]
        processes = [
            stack.enter_context(subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT))
            for argv, file in zip(commands, files, strict=True)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                if process.poll() is None:
                    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                        one.kill()
            print(logs())


def logs() -> str:
    """What the commands wrote that were started last."""
    return '\n'.join(path.read_text() for path in sorted(Path().glob('output-*.log')))


def ended(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    end = time.monotonic() + PATIENCE
    return [process.wait(end - time.monotonic()) for process in processes]


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun(alone: Path, hosts: Hosts) -> None:
    with started(*with_torchrun(hosts)) as processes:
        assert ended(processes) == [0, 0]
    assert_same(alone, Path('output/sft'))
    assert 'it means nothing' not in logs(), 'the settings of a run are those of another'


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deepspeed_without_ssh(alone: Path, hosts: Hosts) -> None:
    with started(*without_ssh(hosts)) as processes:
        assert ended(processes) == [0, 0]
    assert_same(alone, Path('output/sft'))


def without_ssh(hosts: Hosts, *more: str) -> list[list[str]]:
    """The command on each host."""
    Path('hosts').write_text(block('node-1 '))
    argv = command('deepspeed --hostfile hosts --no_ssh')
    place = argv.index('--node_rank') + 1
    return [host.command([*argv[:place], str(number), *argv[place + 1 :], *more]) for number, host in enumerate(hosts)]


def with_torchrun(hosts: Hosts, *more: str) -> list[list[str]]:
    """The command on each host."""
    return [host.command([*command('torchrun'), *more]) for host in hosts]


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (SSHD and SSH and PDSH), reason='sshd, ssh or pdsh is not installed')
def test_deepspeed_over_ssh(alone: Path, hosts: Hosts) -> None:
    Path('hosts').write_text(block('node-1 '))
    # The other node begins with an environment of its own.
    Path('.deepspeed_env').write_text(''.join(f'{name}={value}\n' for name, value in ENVIRONMENT.items()))
    first, _ = hosts
    with (
        listening_for_ssh(hosts),
        started(
            first.command(command('deepspeed --hostfile hosts --module align_anything.trainers.text_to_text.sft'))
        ) as processes,
    ):
        assert ended(processes) == [0]
    assert 'node-2: ' in logs(), 'pdsh says which host speaks'
    assert_same(alone, Path('output/sft'))


@contextmanager
def listening_for_ssh(hosts: Hosts) -> Iterator[None]:
    """A daemon on each host that lets in whoever has the key of this folder, which `ssh` takes along."""
    here = Path.cwd()
    for name in ('host', 'user'):
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', name], check=True)
    Path('sshd_config').write_text(
        f'HostKey {here}/host\nAuthorizedKeysFile {here}/user.pub\nStrictModes no\nPermitRootLogin yes\n'
        'PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n'
    )
    Path('ssh_config').write_text(
        f'IdentityFile {here}/user\nUserKnownHostsFile {here}/known\nStrictHostKeyChecking no\nLogLevel ERROR\n'
    )
    Path('bin/ssh').write_text(f'#!/bin/sh\nexec {SSH} -F {here}/ssh_config "$@"\n')
    Path('bin/ssh').chmod(0o755)
    # Its folder for privilege separation is one of the host's own.
    begin = f'mount -t tmpfs none /run && mkdir /run/sshd && exec {SSHD} -D -e -f {here}/sshd_config'
    with ExitStack() as stack:
        for host in hosts:
            daemon = subprocess.Popen(host.command(['sh', '-c', begin]), stderr=open(f'{host.name}.log', 'wb'))
            stack.callback(daemon.wait)
            stack.callback(daemon.kill)
            knock = host.command(['ssh', host.name, 'true'])
            end = time.monotonic() + 20
            while subprocess.run(knock, capture_output=True).returncode:
                assert time.monotonic() < end, Path(f'{host.name}.log').read_text()
                time.sleep(0.1)
        yield


def test_the_script_for_slurm_is_one(tmp_path: Path) -> None:
    script = tmp_path / 'job.sh'
    script.write_text(block('#!/bin/bash\n#SBATCH'))
    subprocess.run(['bash', '-n', script], check=True)
    # Without `B:`, which would tell the script alone: srun hands on no signal that its script gets.
    assert re.search(r'^#SBATCH --signal=TERM@\d+$', script.read_text(), re.MULTILINE)


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slurm_stops_a_job_and_the_next_one_goes_on(alone: Path, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    Path('job.sh').write_text(block('#!/bin/bash\n#SBATCH'))
    for name, text in slurm(hosts).items():
        Path('bin', name).write_text(text)
        Path('bin', name).chmod(0o755)
    for name, value in {'JOB_ID': '1', 'NNODES': '2', 'JOB_NODELIST': 'node-[1-2]'}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    metrics = Path('output/sft/metrics.jsonl')
    with started(['bash', 'job.sh']) as processes:
        end = time.monotonic() + PATIENCE
        while not lines(metrics):
            assert processes[0].poll() is None and time.monotonic() < end
            time.sleep(0.02)
        # Slurm's signal goes to every process of the tasks.
        for task in map(int, Path('tasks').read_text().split()):
            for one in [psutil.Process(task), *psutil.Process(task).children(recursive=True)]:
                one.send_signal(signal.SIGTERM)
        assert ended(processes) != [0]
    assert 'stopped by SIGTERM after step' in logs()
    done = len(lines(metrics))
    assert 0 < done < STEPS and Path(f'output/sft/slice_{done}').is_dir()
    with started(['bash', 'job.sh']) as processes:
        assert ended(processes) == [0]
    assert f'after step {done} of {STEPS}' in logs()
    assert_same(alone, Path('output/sft'))


def slurm(hosts: Hosts) -> dict[str, str]:
    """What stands in for Slurm's commands: `srun` runs a task on each host and waits for both."""
    run = '\n'.join(f'{shlex.join(host.command([]))} "$@" & tasks+=($!)' for host in hosts)
    return {
        'scontrol': '#!/bin/sh\n[ "$*" = "show hostnames node-[1-2]" ] && printf "node-1\\nnode-2\\n"\n',
        'srun': f'#!/bin/bash\ntasks=()\n{run}\necho "${{tasks[@]}}" > tasks\ncode=0\n'
        'for task in "${tasks[@]}"; do wait "$task" || code=$?; done\nexit $code\n',
    }
