"""As much of `docker build` as a machine does without an engine.

Instructions are carried out one by one in a view of the machine's own disk, which keeps to itself what is written. The
machine stands in for the base image, so it must have the same system and the same Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Instruction = tuple[str, str]
ROOT = 'root'
PROGRAMS = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
# Of the test's own environment; the rest says how this machine reaches the network.
OWN = ('PYTHON', 'PYTEST', 'VIRTUAL_ENV', 'ALIGN_ANYTHING')
# The cache of downloads is root's, and so may be this machine's Python.
MAY_READ_ALL = ['--inh-caps=+dac_override,+fowner', '--ambient-caps=+dac_override,+fowner']


def instructions_of(dockerfile: str) -> list[Instruction]:
    """Returns the instructions of a Dockerfile, each with its arguments."""
    text = '\n'.join(line for line in dockerfile.splitlines() if not line.startswith('#'))
    lines = re.sub(r'\\\n\s*', ' ', text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def why_no_view(base: str) -> str:
    """Returns why this machine cannot stand in for a base such as `python:3.11-slim-bookworm`; nothing if it can."""
    if os.geteuid():
        return 'this is not root'
    missing = [name for name in ('chroot', 'nsenter', 'setpriv', 'unshare') if shutil.which(name) is None]
    if missing:
        return f'there is no {" and no ".join(missing)}'
    release = Path('/etc/os-release')
    if not release.exists() or f'VERSION_CODENAME={base.rpartition("-")[2]}\n' not in release.read_text():
        return f'this is another system than that of {base}'
    if not base.startswith(f'python:{sys.version_info.major}.{sys.version_info.minor}-'):
        return f'this is another Python than that of {base}'
    return ''


class View:
    """A view of the disk. `user`, `place` and `environment` are those of the instructions so far.

    Args:
        folder: keeps what is written.
        holder: a process whose mounts the view is.
    """

    def __init__(self, folder: Path, holder: int) -> None:
        self._folder, self._holder = folder, holder
        self.user, self.place = ROOT, '/'
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
        cache = os.environ.get('UV_CACHE_DIR', str(Path.home() / '.cache' / 'uv'))
        self.environment = {
            **kept,
            'PATH': f'{sys.base_prefix}/bin:{PROGRAMS}',
            'UV_CACHE_DIR': cache,
            'UV_LINK_MODE': 'symlink',
        }

    def run(self, line: str) -> str:
        """Runs a line of shell. Returns what it says; raises RuntimeError with that where it fails."""
        become, home = [], '/root'
        if self.user != ROOT:
            become = ['setpriv', f'--reuid={self.user}', f'--regid={self.user}', '--clear-groups', *MAY_READ_ALL]
            home = f'/home/{self.user}'
        environment = [f'{name}={value}' for name, value in {**self.environment, 'HOME': home}.items()]
        argv = ['nsenter', f'--target={self._holder}', '--mount', '--', 'chroot', f'{self._folder}/view', *become]
        argv += ['env', '-i', *environment, 'sh', '-c', f'cd {self.place} && {{ {line}\n}}']
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f'{line} ended with {done.returncode}:\n{done.stdout[-4000:]}')
        return done.stdout

    def obey(self, instruction: Instruction, copy: Callable[[str], bytes]) -> None:
        """Carries out an instruction. `copy` gives what a COPY names, as a tar archive for the folder of work."""
        name, arguments = instruction
        if name == 'RUN':
            self.run(arguments)
        elif name == 'USER':
            self.user = arguments
        elif name == 'WORKDIR':
            self.run(f'mkdir -p {arguments}')
            self.place = arguments
        elif name in ('ARG', 'ENV'):
            key, value = arguments.split('=', 1)
            value = re.sub(r'\$(\w+)', lambda found: self.environment[found[1]], value.strip('"'))
            self.environment[key] = value
        elif name == 'COPY':
            (self._folder / 'files.tar').write_bytes(copy(arguments))
            self.run('tar --extract --no-same-owner --file /mnt/files.tar')


@contextmanager
def view() -> Iterator[View]:
    """Makes a view, of which nothing is left at the end. Raises OSError where the kernel cannot, or may not."""
    with tempfile.TemporaryDirectory(prefix='view-') as name:
        yield from _view(Path(name))


def _view(folder: Path) -> Iterator[View]:
    for name in ('kept', 'work', 'view'):
        (folder / name).mkdir()
    seen = folder / 'view'
    begin = (
        f'mount -t overlay overlay -o lowerdir=/,upperdir={folder}/kept,workdir={folder}/work {seen} && '
        f'mount --rbind /proc {seen}/proc && mount --rbind /dev {seen}/dev && mount --bind {folder} {seen}/mnt && '
        'echo ready && exec cat'
    )
    argv = ['unshare', '--mount', 'sh', '-c', begin]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != 'ready\n':
                raise OSError('no view of the disk can be mounted')
            made = View(folder, process.pid)
            # People of this machine are unknown to the base image, in which everyone reaches Python.
            reached = [str(folder) for folder in Path(sys.base_prefix).parents]
            made.run(f'chmod a+x {" ".join(reached)}')
            made.run("for one in $(awk -F: '$3 >= 1000 && $3 < 60000 {print $1}' /etc/passwd); do userdel $one; done")
            yield made
        finally:
            process.kill()


def archive(files: Sequence[Path], root: Path) -> bytes:
    """Returns files under a folder as a tar archive."""
    names = [str(file.relative_to(root)) for file in files]
    return subprocess.run(
        ['tar', '--create', f'--directory={root}', '--', *names], stdout=subprocess.PIPE, check=True
    ).stdout
