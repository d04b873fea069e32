"""Two hosts of a network on one machine: each has a name, an address and interfaces of its own, and the same files.

    with two_hosts(tmp_path) as (first, second):
        subprocess.run(first.command(['ping', '-c', '1', second.name]))
        with second.network():
            serve_at(second.address)

They are namespaces of the kernel, which takes root. Nothing of them is left when the context ends, however it does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

NAMES = {'node-1': '10.77.0.1', 'node-2': '10.77.0.2'}
INTERFACE = 'eth0'
NEEDED = ('ip', 'mount', 'nsenter', 'unshare')


@dataclass(frozen=True)
class Host:
    """One of them.

    Attributes:
        name: what the others and it itself call it.
        address: on the network between them.
        process: whose namespaces it is.
    """

    name: str
    address: str
    process: int

    def command(self, argv: Sequence[str]) -> list[str]:
        """Returns the command that runs another one on this host, in the folder where this process is."""
        return [
            'nsenter',
            f'--target={self.process}',
            '--net',
            '--uts',
            '--mount',
            '--',
            'env',
            f'--chdir={os.getcwd()}',
            *argv,
        ]

    def cut_off(self, cut: bool = True) -> None:
        """Takes the network between the hosts down at this one, or up again; the other hears nothing of that."""
        subprocess.run(
            self.command(['ip', 'link', 'set', INTERFACE, 'down' if cut else 'up']), check=True, capture_output=True
        )

    def processes(self) -> list[psutil.Process]:
        """Returns what runs on this host, but for the process that keeps it."""
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                here = os.stat(f'/proc/{process.pid}/ns/net').st_ino == self._network
                if here and process.pid != self.process and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    @property
    def _network(self) -> int:
        return os.stat(f'/proc/{self.process}/ns/net').st_ino

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and what it forks, has the network of this host meanwhile, but not its table of names."""
        own = os.open('/proc/thread-self/ns/net', os.O_RDONLY)
        there = os.open(f'/proc/{self.process}/ns/net', os.O_RDONLY)
        try:
            _move_to(there)
            yield
        finally:
            _move_to(own)
            os.close(own)
            os.close(there)


def why_no_hosts() -> str:
    """Returns why there can be no hosts here; nothing where there can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f'there is no {" and no ".join(missing)}'
    tried = subprocess.run(['unshare', '--net', '--uts', '--mount', 'true'], capture_output=True, text=True)
    return tried.stderr.strip()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Makes the hosts, which keep their table of names in `folder`."""
    table = folder / 'names'
    lines = [f'{address} {name}\n' for name, address in NAMES.items()]
    table.write_text(''.join(['127.0.0.1 localhost\n', *lines]))
    with ExitStack() as stack:
        first, second = (stack.enter_context(_host(name, table)) for name in NAMES)
        pair = ['ip', 'link', 'add', INTERFACE, 'type', 'veth', 'peer', 'name', INTERFACE, 'netns', str(second.process)]
        subprocess.run(first.command(pair), check=True)
        for host in (first, second):
            for change in (
                ['ip', 'address', 'add', f'{host.address}/24', 'dev', INTERFACE],
                ['ip', 'link', 'set', INTERFACE, 'up'],
            ):
                subprocess.run(host.command(change), check=True)
        yield first, second


@contextmanager
def _host(name: str, table: Path) -> Iterator[Host]:
    begin = 'hostname "$1" && ip link set lo up && mount --bind "$2" /etc/hosts && echo ready && exec cat'
    argv = ['unshare', '--net', '--uts', '--mount', 'sh', '-c', begin, 'sh', name, str(table)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != 'ready\n':
                raise OSError(f'{name} did not begin')
            yield Host(name, NAMES[name], process.pid)
        finally:
            process.kill()


def _move_to(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), 'setns')
